// The sources of a layer's kernels: a kernel to choose, and a tab for each language.

function sourcesOf(store, layer) {
  const { sources } = store.data;
  const body = el("div", { class: "sources" });
  const list = el("div", { class: "tabs small", role: "tablist", "aria-label": "Language" });
  const shown = el("div", { class: "source", role: "tabpanel", id: "source" });
  const showKernel = (place) => {
    const [kernel, numbers] = layer.kernels[place];
    const items = numbers.map((number, i) => (
      { id: `language-${i}`, controls: "source", label: sources[number].language }));
    tabList(list, items, async (chosen) => {
      const source = sources[numbers[chosen]];
      const what = `${kernel} in ${source.language}`;
      shown.setAttribute("aria-labelledby", `language-${chosen}`);
      shown.wanted = source;
      const text = await store.text(source.text);
      if (shown.wanted !== source) return;
      shown.replaceChildren(text
        ? el("div", {},
          el("div", { class: "code-head" },
            el("p", {}, countOf(text.trimEnd().split("\n").length, "line")),
            enlargeButton(text, what), copyButton(text, what)),
          codeBlock(text, what))
        : el("p", { class: "empty" }, "This source is empty."));
    });
  };
  if (layer.kernels.length > 1) {
    const choice = el("select", { id: "kernel", change: () => showKernel(choice.selectedIndex) },
      ...layer.kernels.map(([kernel]) => el("option", {}, kernel)));
    body.append(el("label", { class: "field" }, "Kernel", choice));
  } else {
    body.append(el("p", { class: "kernel-name" }, layer.kernels[0][0]));
  }
  body.append(list, shown);
  showKernel(0);
  return body;
}
