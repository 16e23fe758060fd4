// Draws the stimuli that networks agree on most and least: pictures, texts, or a picture and its text side by side.

class Stimuli {
  constructor(page) {
    this.page = page;
  }

  draw() {
    const { part, kernel, data } = this.page;
    const chosen = part.stimuli[kernel];
    byId("stimuli").hidden = !chosen?.most.length;
    if (!chosen?.most.length) return;
    byId("stimuli-note").textContent = [chosen.note, data.stimuli_note].filter(Boolean).join(" ");
    const values = part.select("agreement", { kernel });
    const shown = Object.values(data.stimuli);
    const has = (key, views) => views.some((view) => view[key] !== undefined);
    const list = (id, samples) => {
      byId(id).classList.toggle("words", shown.some((views) => has("text", views)));
      byId(id).classList.toggle("pairs", shown.some((views) => has("url", views) && has("text", views)));
      byId(id).replaceChildren(...samples.map((k) => this.card(part.coords.sample[k], values[k])));
    };
    list("most", chosen.most);
    list("least", chosen.least);
  }

  card(name, value) {
    const views = (this.page.data.stimuli[name] ?? []).map((view) => this.view(name, view));
    return element("li", {}, ...views, element("span", {}, name), element("b", {}, `${value > 0 ? "+" : ""}${fixed(value)}`));
  }

  view(name, { url, text, missing }) {
    if (url) return element("img", { src: url, alt: `Picture ${name}` });
    if (text !== undefined) return element("blockquote", { dir: "auto" }, text || MISSING);
    return element("span", { class: "missing" }, missing);
  }
}
