// What every page has around its contents: colours, sizes, printing, the address, and the order of drawing.

class Frame {
  constructor(data) {
    this.data = data;
    this.dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const { theme } = viewFromAddress();
    this.requestedTheme = ["light", "dark"].includes(theme) ? theme : "";
  }

  applyTheme() {
    const theme = this.state.get("theme") || (this.dark ? "dark" : "light");
    document.documentElement.dataset.theme = theme;
    byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
    byId("theme").setAttribute("aria-label", `${theme === "dark" ? "Light" : "Dark"} colours`);
  }

  drawAll() {
    this.drawMatrix();
    this.drawRest();
  }

  listenToFrame() {
    const { state } = this;
    state.listen(["theme"], () => {
      this.applyTheme();
      this.drawAll();
    });
    byId("controls").addEventListener("submit", (event) => event.preventDefault());
    byId("theme").addEventListener("click", () => state.set({ theme: document.documentElement.dataset.theme === "dark" ? "light" : "dark" }));
    byId("copy").addEventListener("click", () => this.about.copy());
    addEventListener("hashchange", () => {
      if (location.hash === state.address || !Object.keys(viewFromAddress()).length) return;
      state.set(viewFromAddress(), { address: false });
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", ({ matches }) => {
      this.dark = matches;
      this.applyTheme();
      this.drawAll();
    });
    addEventListener("keydown", ({ key }) => key === "Escape" && hideTip());
    this.listenToSizes();
  }

  listenToSizes() {
    let width = innerWidth;
    let timer = 0;
    addEventListener("resize", () => {
      if (innerWidth === width || this.printing) return;
      width = innerWidth;
      clearTimeout(timer);
      timer = setTimeout(() => this.drawAll(), 120);
    });
    addEventListener("beforeprint", () => this.print());
    addEventListener("afterprint", () => this.endPrint());
  }

  // Prepares the page for printing: light colours, the width of A4 within margins, all sections open.
  print() {
    this.printing = true;
    this.closed = [...document.querySelectorAll("details:not(.data):not([open])")];
    for (const details of this.closed) details.open = true;
    document.documentElement.dataset.theme = "light";
    document.body.style.width = "180mm";
    this.drawAll();
  }

  endPrint() {
    for (const details of this.closed) details.open = false;
    document.body.style.width = "";
    this.printing = false;
    this.applyTheme();
    this.drawAll();
  }
}

async function draw(Kind) {
  const library = inflate(byId("library").textContent); // runs in the background
  const data = JSON.parse(byId("data").textContent);
  const page = new Kind(data);
  page.about.draw();
  page.updateControls();
  page.drawMatrix();
  const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  await painted();
  performance.mark("seen");
  document.head.append(element("script", {}, await library));
  page.drawMatrix();
  page.listen();
  performance.mark("drawn");
  await painted();
  page.drawRest();
  performance.mark("complete");
  document.documentElement.dataset.ready = "";
}

const start = (Kind) => draw(Kind).catch((error) => {
  byId("failure").hidden = false;
  byId("failure").textContent = `This page could not be drawn: ${error.message}. It needs a browser of 2023 or newer.`;
  throw error;
});
