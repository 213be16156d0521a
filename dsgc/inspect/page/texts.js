// Long texts: a stage's graph as text, diffs, and kernels' sources.

const LINES = 200;

// A text in pieces, so that the browser lays out only those that are seen.
function codeBlock(text, label, mark = null) {
  const block = el("pre", { class: mark ? "code diff" : "code", "aria-label": label, tabindex: 0 });
  const code = el("code");
  const lines = text.replace(/\n$/, "").split("\n");
  const longest = lines.reduce((most, line) => Math.max(most, columns(line)), 0);
  code.style.minWidth = `${longest + 1}ch`;
  for (let start = 0; start < lines.length; start += LINES) {
    const some = lines.slice(start, start + LINES);
    const piece = el("span", { class: "piece" });
    piece.style.containIntrinsicHeight = `auto ${some.length * 1.5}em`;
    if (mark) {
      piece.append(...some.map((line) => el("span", { class: mark(line) }, `${line}\n`)));
    } else {
      piece.textContent = `${some.join("\n")}\n`;
    }
    code.append(piece);
  }
  block.append(code);
  return block;
}

// About how many columns a line takes: tabs take four, characters beyond Latin up to two.
function columns(line) {
  let count = line.length;
  for (const character of line) {
    if (character === "\t") count += 3;
    else if (character > "\u2e7f") count += 1;
  }
  return count;
}

// What a line of a unified diff is; "---" and "+++" name files only before the first hunk.
function diffMarks() {
  let inside = false;
  return (line) => {
    if (line.startsWith("@@")) {
      inside = true;
      return "hunk";
    }
    if (!inside) return "file";
    if (line.startsWith("+")) return "added";
    return line.startsWith("-") ? "removed" : "same";
  };
}

function copyButton(text, what) {
  const button = textButton("Copy", `Copy ${what}`, async () => {
    const copied = await copyText(text);
    button.textContent = copied ? "Copied" : "Not allowed";
    announce(copied ? `Copied ${what}` : "The browser does not allow copying");
    setTimeout(() => { button.textContent = "Copy"; }, 1600);
  });
  return button;
}

// Shows a text over the whole page.
function enlargeButton(text, what) {
  const show = () => {
    const large = el("dialog", { class: "large", "aria-labelledby": "large-title" },
      el("div", { class: "code-head" }, el("h2", { id: "large-title" }, what),
        copyButton(text, what), textButton("Close", undefined, () => large.close())),
      codeBlock(text, what));
    large.addEventListener("close", () => large.remove());
    document.body.append(large);
    large.showModal();
  };
  return textButton("Enlarge", `Enlarge ${what}`, show);
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Where the clipboard is not allowed, such as in frames, copying a selection often is.
    const area = el("textarea", { class: "unseen", "aria-hidden": "true" });
    const focused = document.activeElement;
    area.value = text;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return copied;
  }
}

// The tabs of a stage: graph, nodes, text, diff. Each is filled when it is first opened.
class Views {
  constructor(page) {
    this.page = page;
    this.filled = new Map();
    this.names = ["graph", "nodes", "text", "diff"];
    const labels = { graph: "Graph", nodes: "Nodes", text: "Text", diff: "Diff" };
    const items = this.names.map((name) => (
      { id: `tab-${name}`, controls: `view-${name}`, label: labels[name] }));
    this.tabs = tabList(byId("tabs"), items, (place) => this.show(this.names[place]));
  }

  show(name) {
    this.shown = name;
    for (const other of this.names) byId(`view-${other}`).hidden = other !== name;
    this.fill();
  }

  open(name) {
    if (this.shown !== name) this.tabs.pick(this.names.indexOf(name));
  }

  // Fills the tab that is shown, unless it shows this stage already.
  async fill() {
    const { shown, page } = this;
    if (shown === "graph" || page.stage < 0 || !page.graph) return;
    const what = shown === "nodes" ? page.graph : page.stage;
    if (this.filled.get(shown) === what) return;
    this.filled.set(shown, what);
    const place = byId(`view-${shown}`);
    if (shown === "nodes") {
      this.nodeTable = nodeTable(page.graph, (node) => page.selectNode(node));
      place.replaceChildren(page.graph.nodes.length
        ? this.nodeTable.element : el("p", { class: "empty" }, "This stage's graph has no nodes."));
      this.nodeTable.choose(page.selected.node, place);
      return;
    }
    const stage = page.store.data.stages[page.stage];
    const text = await page.store.text(stage[shown]);
    if (page.stage !== what) return;
    place.scrollTop = 0;
    if (!text) {
      const why = shown === "text" ? "This stage was recorded without its text."
        : "No diff: this stage is the first one, or its pass changed nothing.";
      place.replaceChildren(el("p", { class: "empty" }, why));
      return;
    }
    const label = shown === "text" ? `Graph after ${stage.name}` : `What ${stage.name} changed`;
    place.replaceChildren(
      el("div", { class: "code-head" }, el("p", {}, label), copyButton(text, "the text")),
      codeBlock(text, label, shown === "diff" ? diffMarks() : null));
  }

  choose(node) {
    if (this.shown === "nodes") this.nodeTable?.choose(node, byId("view-nodes"));
  }
}
