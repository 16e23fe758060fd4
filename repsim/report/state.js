// What is shown, and the address that leads to it: everything after # names a view, so that it can be linked.

const KEPT = ["measure", "readout", "view", "pair", "theme"];

class State {
  constructor(first) {
    this.values = { ...first };
    this.listeners = [];
  }

  get(name) {
    return this.values[name];
  }

  listen(names, act) {
    this.listeners.push({ names, act });
  }

  set(changes, { address = true } = {}) {
    const changed = Object.keys(changes).filter((name) => changes[name] !== this.values[name]);
    Object.assign(this.values, changes);
    if (address && changed.some((name) => KEPT.includes(name))) this.write();
    const due = this.listeners.filter(({ names }) => names.some((name) => changed.includes(name)));
    for (const { act } of due) act();
  }

  write() {
    const named = new URLSearchParams(KEPT.filter((name) => this.values[name]).map((name) => [name, this.values[name]]));
    this.address = `#${named}`;
    location.replace(this.address);
  }
}

const linked = () => Object.fromEntries(
  [...new URLSearchParams(location.hash.slice(1))].filter(([name]) => KEPT.includes(name)));
