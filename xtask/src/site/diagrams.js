// Has Mermaid draw the blocks that are written in its language, and draw them again when the reader chooses other colours.
(() => {
  const blocks = [...document.querySelectorAll("code.language-mermaid")].map((code) => {
    const drawn = document.createElement("div");
    drawn.className = "mermaid";
    drawn.style.textAlign = "center";
    const source = code.textContent;
    code.closest("pre").replaceWith(drawn);
    return { drawn, source };
  });
  if (blocks.length === 0) return;
  const draw = async () => {
    const dark = ["navy", "coal", "ayu"].some((name) => document.documentElement.classList.contains(name));
    mermaid.initialize({ startOnLoad: false, theme: dark ? "dark" : "default", flowchart: { wrappingWidth: 300 } });
    for (const { drawn, source } of blocks) {
      drawn.removeAttribute("data-processed");
      drawn.textContent = source;
    }
    await mermaid.run({ nodes: blocks.map(({ drawn }) => drawn) });
  };
  draw();
  new MutationObserver(draw).observe(document.documentElement, { attributeFilter: ["class"] });
})();
