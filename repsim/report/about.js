// What stands beside the figures: findings, how it was made, how to cite it.

class About {
  constructor(page) {
    this.page = page;
  }

  draw() {
    const { part, data } = this.page;
    byId("kind").textContent = part.isStudy ? "study" : "comparison";
    const { facts } = part;
    byId("subtitle").textContent = [
      `${facts.samples} samples of ${facts.data}`, part.readout && `readout ${part.readout}`,
      facts.permutations && `${facts.permutations} permutations`, facts.created && `made ${facts.created.slice(0, 10)}`].filter(Boolean).join(" · ");
    byId("tiles").replaceChildren(...(part.isStudy ? this.tiles() : []));
    byId("summary").replaceChildren(...part.summary.map((text) => element("p", {}, text)));
    const warnings = byId("warnings");
    warnings.hidden = !part.warnings.length;
    warnings.querySelector("ul").replaceChildren(...part.warnings.map((text) => element("li", {}, text)));
    byId("findings-title").textContent = part.isStudy ? "What was found" : "What is compared";
    this.facts();
    byId("citation").textContent = data.citation.text;
    byId("bibtex").textContent = data.citation.bibtex;
    const cited = part.measures.filter(({ citation }) => citation).map(({ name, citation }) => `${name.split(" given ")[0]}: ${citation}`);
    byId("sources").textContent = cited.length ? `Please also cite whose measures you report: ${[...new Set(cited)].join(". ")}.` : "";
  }

  // The few numbers that everything else explains.
  tiles() {
    const { part } = this.page;
    const kernel = part.strictest;
    const relation = ["other family", "same architecture", "same family"].find((each) => Number.isFinite(part.one("index_mean", { kernel: "cka", kind_of_pair: each })));
    const where = { "other family": "across families", "same family": "within families", "same architecture": "of one architecture" }[relation];
    const made = (what, of, text, strong) => {
      const [value, low, high] = ["", "_low", "_high"].map((end) => part.one(`${what}_mean${end}`, { kernel: of, kind_of_pair: relation }));
      return Number.isFinite(value) ? [tile(text, fixed(value, 3), interval(low, high, 3), strong)] : [];
    };
    return relation ? [
      ...made("index", "cka", `Debiased CKA of best-matching layers, ${where}`),
      ...made("control", "cka", "The same with untrained networks"),
      ...(kernel === "cka" ? [] : made("index", kernel, `What is left ${kernel.replace("cka ", "")}`)),
      ...(kernel === "cka" ? [] : made("control", kernel, "And with untrained networks")),
      ...made("learned", kernel, `Learned effect (${kernel})`, true),
    ] : [];
  }

  facts() {
    const { part, data } = this.page;
    const all = { ...part.facts, ...data.files };
    byId("facts").replaceChildren(...Object.entries(all).flatMap(([term, text]) => [
      element("dt", {}, term), element("dd", { class: /command|SHA/.test(term) ? "code" : "" }, text)]));
    const told = { architecture: "Architecture", weights: "Weights", seed: "Seed", weights_sha256: "Weights, SHA-256", checksum: "Checksum of the store", batch_norm: "Batch norm", device: "Device" };
    const known = Object.keys(told).filter((key) => part.models.some((model) => model[key]));
    const rows = part.models.map((model) => [
      model.name, ...(part.isStudy ? [model.family || MISSING, model.trained ? "trained" : "untrained"] : []),
      ...known.map((key) => (key.endsWith("sha256") ? (model[key] ?? MISSING).slice(0, 12) : model[key] ?? MISSING))]);
    byId("networks").replaceChildren(table(["Network", ...(part.isStudy ? ["Family", "State"] : []), ...known.map((key) => told[key])], rows, "Networks", 99));
  }

  async copy() {
    const text = byId("bibtex").textContent;
    let done = false;
    try {
      await navigator.clipboard.writeText(text);
      done = true;
    } catch { // not allowed from a file, in some browsers: select it instead
      const range = document.createRange();
      range.selectNodeContents(byId("bibtex"));
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      done = document.execCommand("copy");
    }
    byId("copied").textContent = done ? "Copied." : "Selected: press Ctrl+C.";
  }
}
