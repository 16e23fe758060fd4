// Draws the stimuli that networks agree on most and least.

class Stimuli {
  constructor(page) {
    this.page = page;
  }

  draw() {
    const { part, kernel, data } = this.page;
    const chosen = part.stimuli[kernel];
    byId("stimuli").hidden = !chosen?.most.length;
    if (!chosen?.most.length) return;
    byId("stimuli-note").textContent = `${chosen.note} ${data.pictures_note}`;
    const values = part.select("agreement", { kernel });
    const list = (id, samples) => byId(id).replaceChildren(...samples.map((k) => this.card(part.coords.sample[k], values[k])));
    list("most", chosen.most);
    list("least", chosen.least);
  }

  card(name, value) {
    const picture = this.page.data.pictures[name];
    const shown = picture?.url
      ? element("img", { src: picture.url, alt: `Picture ${name}` })
      : picture?.missing && element("span", { class: "missing" }, picture.missing);
    return element("li", {}, shown || null, name, element("b", {}, `${value > 0 ? "+" : ""}${fixed(value)}`));
  }
}
