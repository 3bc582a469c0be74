// Draws every figure of the page with the colours of the reader's scheme, and again when it changes.
(() => {
  "use strict";
  const VARIABLE = /var\((--[a-z-]+)\)/;
  const divs = [...document.querySelectorAll(".plot")];
  const specs = new Map(divs.map((div) => [div.id, JSON.parse(div.querySelector("script").textContent)]));
  const config = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]] };
  let printing = false;

  // A copy of a figure in which `var(--blue)` is the value that the style sheet gives it now.
  function colored(node, style) {
    if (typeof node === "string") {
      const found = VARIABLE.exec(node);
      return found ? style.getPropertyValue(found[1]).trim() : node;
    }
    if (Array.isArray(node)) return node.map((item) => colored(item, style));
    if (node === null || typeof node !== "object") return node;
    return Object.fromEntries(Object.entries(node).map(([key, value]) => [key, colored(value, style)]));
  }

  function draw(div) {
    const style = getComputedStyle(document.documentElement);
    const { data, layout } = colored(specs.get(div.id), style);
    layout.font.family = getComputedStyle(document.body).fontFamily;
    layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: layout.font.color, activecolor: layout.font.color };
    layout.autosize = !printing;
    if (printing) layout.width = 680;
    const narrow = window.innerWidth < 520 && !printing;
    if (narrow) {
      layout.font.size = 11;
      layout.dragmode = false; // a finger scrolls the page
    }
    return Plotly.react(div, data, layout, { ...config, displayModeBar: narrow || printing ? false : "hover" });
  }

  function drawAll() {
    return Promise.all(divs.map(draw)).then(() => {
      document.documentElement.dataset.plots = String(divs.length);
    });
  }

  for (const div of divs) div.replaceChildren();
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  const print = (on) => {
    printing = on;
    document.documentElement.classList.toggle("light", on); // paper is white in every scheme
    drawAll();
  };
  window.addEventListener("beforeprint", () => print(true));
  window.addEventListener("afterprint", () => print(false));
  drawAll();
})();
