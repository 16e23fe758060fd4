// The state of the page, which the address contains after #, so that a view can be linked.

const IN_ADDRESS = ["measure", "readout", "view", "pair", "comparison", "run", "point", "theme"];

class State {
  constructor(first) {
    this.values = { ...first };
    this.listeners = [];
  }

  get(name) {
    return this.values[name];
  }

  listen(names, callback) {
    this.listeners.push({ names, callback });
  }

  set(changes, { address = true } = {}) {
    const changed = Object.keys(changes).filter((name) => changes[name] !== this.values[name]);
    Object.assign(this.values, changes);
    if (address && changed.some((name) => IN_ADDRESS.includes(name))) this.write();
    const due = this.listeners.filter(({ names }) => names.some((name) => changed.includes(name)));
    for (const { callback } of due) callback();
  }

  write() {
    const parameters = new URLSearchParams(IN_ADDRESS.filter((name) => this.values[name]).map((name) => [name, this.values[name]]));
    this.address = `#${parameters}`;
    location.replace(this.address);
  }
}

const viewFromAddress = () => Object.fromEntries(
  [...new URLSearchParams(location.hash.slice(1))].filter(([name]) => IN_ADDRESS.includes(name)));
