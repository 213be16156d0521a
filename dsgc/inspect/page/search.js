// Finding nodes of the stage by name, operation or layer.

class Search {
  constructor(page) {
    this.page = page;
    this.field = byId("search");
    this.count = byId("found");
    this.found = [];
    this.now = -1;
    let waiting = 0;
    this.field.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.run(), 100);
    });
    this.field.addEventListener("keydown", (event) => {
      if (event.key === "Enter") {
        clearTimeout(waiting);
        if (this.query !== this.wanted()) this.run();
        this.step(event.shiftKey ? -1 : 1);
      } else if (event.key === "Escape" && !this.field.value) {
        page.backToGraph();
      } else {
        return;
      }
      event.preventDefault();
    });
    byId("found-before").addEventListener("click", () => this.step(-1));
    byId("found-next").addEventListener("click", () => this.step(1));
  }

  wanted() {
    return this.field.value.trim().toLowerCase();
  }

  run() {
    const { graph, view } = this.page;
    this.query = this.wanted();
    this.now = -1;
    this.found = !this.query || !graph ? [] : graph.order.filter((place) => {
      const { name, label, layer } = graph.nodes[place];
      return [name, label, layer].some((text) => text.toLowerCase().includes(this.query));
    });
    view.hits(this.found, -1);
    this.tell();
  }

  // The results are those of the stage that is shown.
  refresh() {
    if (this.query) this.run();
  }

  step(by) {
    const { found } = this;
    if (!found.length) {
      this.tell();
      return;
    }
    const start = this.now < 0 && by < 0 ? 0 : this.now;
    this.now = (start + by + found.length) % found.length;
    this.page.views.open("graph");
    this.page.view.hits(found, found[this.now]);
    this.page.goTo(found[this.now], false);
    this.tell();
  }

  tell() {
    const { found, now, query } = this;
    for (const id of ["found-before", "found-next"]) byId(id).disabled = !found.length;
    if (!query) this.count.textContent = "";
    else if (!found.length) this.count.textContent = "none";
    else this.count.textContent = now < 0 ? `${found.length}` : `${now + 1} of ${found.length}`;
    this.field.classList.toggle("fails", Boolean(query) && !found.length);
  }
}
