// Stimuli that networks agree on most, and least.

class Stimuli {
  constructor(page) {
    this.page = page;
  }

  draw() {
    const { part, kernel, data } = this.page;
    const values = part.take("agreement", { kernel });
    const there = values.some(Number.isFinite);
    byId("stimuli").hidden = !there;
    if (!there) return;
    const several = new Set(part.coords.family).size > 1;
    byId("stimuli-note").textContent = `How much a stimulus adds to, or takes from, the mean index ${several ? "across families" : "of all pairs"} (${kernel}). ${data.pictures_note}`;
    const order = values.map((_, k) => k).filter((k) => Number.isFinite(values[k])).sort((a, b) => values[b] - values[a]);
    const count = Math.min(data.shown, Math.floor(order.length / 2));
    const list = (id, some) => byId(id).replaceChildren(...some.map((k) => this.card(part.coords.sample[k], values[k])));
    list("most", order.slice(0, count));
    list("least", order.toReversed().slice(0, count));
  }

  card(name, value) {
    const picture = this.page.data.pictures[name];
    const shown = picture?.url
      ? element("img", { src: picture.url, alt: `Picture ${name}` })
      : picture?.missing && element("span", { class: "missing" }, picture.missing);
    return element("li", {}, shown || null, name, element("b", {}, `${value > 0 ? "+" : ""}${fixed(value)}`));
  }
}
