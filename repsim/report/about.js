// Writes the texts around the figures: findings, provenance and citation.

const FEW_ROWS = 24; // of a table of controls that is open at first
const SENTENCES = 6; // of the summary, before the others: models, raw values, given controls, and what is claimed

class About {
  constructor(page) {
    this.page = page;
  }

  draw() {
    const { part, data } = this.page;
    byId("kind").textContent = part.kind;
    byId("subtitle").textContent = part.subtitle;
    byId("tiles").replaceChildren(...(part.tiles ?? []).map(({ label, value, interval, strong }) => tile(label, value, interval, strong)));
    this.summary(part.summary);
    const warnings = byId("warnings");
    warnings.hidden = !part.warnings.length;
    warnings.querySelector("ul").replaceChildren(...part.warnings.map((text) => element("li", {}, text)));
    if (part.isStudy) this.families();
    byId("findings-title").textContent = part.kind === "comparison" ? "Comparison" : "Findings";
    this.facts();
    byId("citation").textContent = data.citation.text;
    byId("bibtex").textContent = data.citation.bibtex;
    byId("sources").textContent = part.sources;
  }

  // Shows the first sentences of the summary, and the others when asked for.
  summary(sentences) {
    const paragraphs = (texts) => texts.map((text) => element("p", {}, text));
    const shown = sentences.length <= SENTENCES + 2 ? sentences.length : SENTENCES;
    const more = byId("more-findings");
    byId("summary").replaceChildren(...paragraphs(sentences.slice(0, shown)));
    more.hidden = shown === sentences.length;
    more.querySelector("summary").textContent = `${sentences.length - shown} more findings`;
    more.querySelector(".prose").replaceChildren(...paragraphs(sentences.slice(shown)));
  }

  // Shows what pairs of families share that was learned, and raw, partial and energy values side by side.
  families() {
    const { claims, effects, energies } = this.page.part;
    byId("families").hidden = !claims?.rows.length;
    if (byId("families").hidden) return;
    byId("claims-note").textContent = claims.note;
    byId("claims").replaceChildren(table(claims.columns, claims.rows, "What is claimed of pairs of families", 3));
    for (const [id, { columns, rows }, caption, words] of [
      ["effects", effects, "Effects of training", 3], ["energies", energies, "Trained networks and each control, side by side", 2]]) {
      byId(id).replaceChildren(table(columns, rows, caption, words));
      byId(id).hidden = !rows.length;
    }
    byId("family-tables").open = energies.rows.length <= FEW_ROWS;
    byId("energies-note").hidden = !energies.rows.length;
  }

  facts() {
    const { part, data } = this.page;
    const all = { ...part.facts, ...data.files };
    byId("facts").replaceChildren(...Object.entries(all).flatMap(([term, text]) => [
      element("dt", {}, term), element("dd", { class: /command|SHA/.test(term) ? "code" : "" }, text)]));
    const { columns, rows } = part.networks;
    byId("networks").replaceChildren(table(columns, rows, "Networks", 99));
  }

  async copy() {
    const text = byId("bibtex").textContent;
    let done = false;
    try {
      await navigator.clipboard.writeText(text);
      done = true;
    } catch { // some browsers forbid it for a page from disk: select the text instead
      const range = document.createRange();
      range.selectNodeContents(byId("bibtex"));
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      done = document.execCommand("copy");
    }
    byId("copied").textContent = done ? "Copied." : "Selected: press Ctrl+C.";
  }
}
