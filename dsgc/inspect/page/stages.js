// Going through the stages: a slider, two buttons, and what the stage's pass did.

class Stages {
  constructor(page) {
    this.page = page;
    this.slider = byId("stage");
    this.before = byId("stage-before");
    this.next = byId("stage-next");
    const { stages } = page.store.data;
    this.stages = stages;
    byId("stages").hidden = stages.length === 0;
    this.slider.max = Math.max(0, stages.length - 1);
    byId("ticks").append(...stages.map(() => el("i")));
    this.slider.addEventListener("input", () => page.showStage(Number(this.slider.value)));
    this.before.addEventListener("click", () => this.step(-1));
    this.next.addEventListener("click", () => this.step(1));
  }

  step(by) {
    const wanted = this.page.stage + by;
    if (wanted < 0 || wanted >= this.stages.length) {
      announce(by < 0 ? "This is the first stage" : "This is the last stage");
      return;
    }
    this.page.showStage(wanted);
  }

  show(number, graph, changes) {
    const stage = this.stages[number];
    const count = `${number + 1} of ${this.stages.length}`;
    this.slider.value = number;
    this.slider.setAttribute("aria-valuetext", `${count}, ${stage.name}`);
    // aria-disabled keeps the focus where it is at the first and the last stage.
    this.before.setAttribute("aria-disabled", String(number === 0));
    this.next.setAttribute("aria-disabled", String(number === this.stages.length - 1));
    byId("stage-name").textContent = stage.name;
    const { fresh, changed, gone } = changes;
    const done = [[fresh, "new"], [changed, "changed"], [gone, "gone"]]
      .filter(([how]) => how > 0).map(([how, what]) => `${how.toLocaleString("en")} ${what}`);
    const did = number === 0 ? "" : done.length ? done.join(", ") : "the graph stays as it was";
    const about = [countOf(graph.nodes.length, "node"), did].filter(Boolean).join(", ");
    byId("stage-about").textContent = [count, stage.note, about].filter(Boolean).join(" · ");
    return `Stage ${count}, ${stage.name}. ${about}.`;
  }
}
