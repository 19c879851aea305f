// Draws the figures that are visible, in the page's colours, and wires check boxes and drop-downs.
(() => {
  "use strict";

  const config = {
    responsive: true,
    displaylogo: false,
    displayModeBar: "hover",
    // On by default: a button that would send the figure to plotly's server.
    showSendToCloud: false,
    plotlyServerURL: "",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  };

  const colour = (name) =>
    getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const themed = () => {
    const axis = { gridcolor: colour("--grid"), linecolor: colour("--rule"), showline: true };
    return {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("--ink"), family: "system-ui, sans-serif", size: 12 },
      modebar: {
        bgcolor: "rgba(0,0,0,0)",
        color: colour("--faint"),
        activecolor: colour("--ink"),
      },
      hoverlabel: { bgcolor: colour("--paper"), font: { color: colour("--ink") } },
      xaxis: axis,
      yaxis: axis,
    };
  };

  const merge = (base, extra) => {
    const merged = { ...base };
    for (const [key, value] of Object.entries(extra)) {
      const nested = value && typeof value === "object" && !Array.isArray(value);
      merged[key] = nested ? merge(base[key] || {}, value) : value;
    }
    return merged;
  };

  const hiddenKeys = (plot) =>
    new Set(
      [...plot.closest("section").querySelectorAll("input[data-key]:not(:checked)")].map(
        (box) => box.dataset.key,
      ),
    );

  // Each box parses its own copy, because plotly writes into what it is given.
  const draw = (plot) => {
    const figure = JSON.parse(document.getElementById(plot.dataset.figure).textContent);
    const hidden = hiddenKeys(plot);
    for (const trace of figure.data) trace.visible = !hidden.has(trace.legendgroup);
    Plotly.react(plot, figure.data, merge(figure.layout, themed()), config);
  };

  const isShown = (plot) => !plot.closest("[hidden]");
  const drawShown = (root) =>
    [...root.querySelectorAll(".plot")].filter(isShown).forEach((plot) => draw(plot));

  for (const select of document.querySelectorAll("select.chooser")) {
    select.addEventListener("change", () => {
      const section = select.closest("section");
      for (const block of section.querySelectorAll("[data-choice]")) {
        block.hidden = block.dataset.choice !== select.value;
      }
      drawShown(section);
    });
  }

  for (const box of document.querySelectorAll("input[data-key]")) {
    box.addEventListener("change", () => {
      const section = box.closest("section");
      // A legend is repeated in each block of a section; they switch together.
      for (const twin of section.querySelectorAll(`input[data-key="${box.dataset.key}"]`)) {
        twin.checked = box.checked;
      }
      drawShown(section);
    });
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
    drawShown(document),
  );

  // A browser restores a drop-down's choice on reload without telling.
  for (const select of document.querySelectorAll("select.chooser")) {
    select.dispatchEvent(new Event("change"));
  }
  drawShown(document);
})();
