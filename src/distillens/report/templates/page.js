// Draws the figures in the page's colours when they come into view, and wires the controls.
(() => {
  "use strict";

  const colour = (name) =>
    getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const dark = matchMedia("(prefers-color-scheme: dark)");

  const themed = () => {
    const text = { labelColor: colour("--ink"), titleColor: colour("--ink") };
    const lines = { gridColor: colour("--grid"), domainColor: colour("--rule") };
    return {
      background: null,
      font: "system-ui, sans-serif",
      axis: {
        ...text,
        ...lines,
        grid: true,
        tickColor: colour("--rule"),
        titleFontWeight: "normal",
        titleFontSize: 12,
        labelFontSize: 11,
      },
      legend: { ...text, labelFontSize: 12 },
      view: { stroke: colour("--rule") },
    };
  };

  // The page's policy forbids eval, so Vega interprets its expressions.
  const draw = (plot) => {
    const spec = JSON.parse(document.getElementById(plot.dataset.figure).textContent);
    return vegaEmbed(plot, spec, {
      mode: "vega-lite",
      renderer: "canvas",
      ast: true,
      actions: false,
      config: themed(),
      tooltip: { theme: dark.matches ? "dark" : "light" },
    }).then(({ view }) => {
      plot.view = view;
      if (plot.dataset.supervision) view.addEventListener("click", (_, item) => showExample(plot, item));
    });
  };

  // A click on a point of a confidence plot shows its card in the gallery, if it is listed there.
  const showExample = (plot, item) => {
    const datum = item && item.datum;
    if (!datum || !(0 in datum)) return;
    const near = (a, b) => Math.abs(a - b) <= 1e-3 * Math.max(1, Math.abs(b));
    const { supervision, split } = plot.dataset;
    const card = [...document.querySelectorAll("#gallery [data-place]")].find((one) => {
      const [x, y] = one.dataset.place.split(",").map(Number);
      const { dataset } = one;
      return dataset.supervision === supervision && dataset.split === split &&
        near(datum[0], x) && near(datum[1], y);
    });
    for (const one of document.querySelectorAll(".card.found")) one.classList.remove("found");
    const caption = plot.parentElement.querySelector("figcaption");
    caption.querySelector(".unlisted")?.remove();
    if (card) {
      card.hidden = false;
      card.classList.add("found");
      card.scrollIntoView({ block: "center" });
      card.focus({ preventScroll: true });
    } else {
      const note = document.createElement("span");
      note.className = "unlisted";
      note.textContent = " This example is not among those listed.";
      caption.append(note);
    }
  };

  // A figure is drawn when it comes near the window, one after the other, so that the page answers
  // in between; a figure in a hidden block has no place in the window.
  let queue = Promise.resolve();
  const drawSoon = (plot) => {
    plot.dataset.drawn = "true";
    queue = queue.then(() => draw(plot)).then(() => new Promise((resolve) => setTimeout(resolve)));
    return queue;
  };
  const near = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        near.unobserve(entry.target);
        drawSoon(entry.target);
      }
    },
    { rootMargin: "600px" },
  );
  const plots = () => [...document.querySelectorAll(".plot")];
  const redraw = () => plots().filter((plot) => plot.dataset.drawn).forEach(drawSoon);
  const drawAll = () =>
    plots().filter((plot) => !plot.dataset.drawn && !plot.closest("[hidden]")).forEach(drawSoon);

  // A drop-down chooses among the blocks of its section, or of a smaller part with data-scope.
  const scopeOf = (element) => element.parentElement.closest("[data-scope], section");
  const choose = (select) => {
    const scope = scopeOf(select);
    for (const block of scope.querySelectorAll("[data-choice]")) {
      if (scopeOf(block) === scope) block.hidden = block.dataset.choice !== select.value;
    }
  };

  // Without JavaScript all blocks of a drop-down are shown. A browser restores a choice on reload.
  for (const select of document.querySelectorAll("select.chooser")) {
    choose(select);
    select.addEventListener("change", () => choose(select));
  }
  for (const button of document.querySelectorAll("button.copy")) {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => (button.textContent = "Copy"), 2000);
    });
  }
  // Filters of the gallery: a card is shown if it has every chosen value.
  const filter = (form) => {
    const wanted = Object.entries(Object.fromEntries(new FormData(form))).filter(([, value]) => value);
    const cards = [...document.getElementById(form.dataset.gallery).children];
    for (const card of cards) {
      card.hidden = wanted.some(([key, value]) =>
        value === "on" ? !(key in card.dataset) : card.dataset[key] !== value,
      );
    }
    const shown = cards.filter((card) => !card.hidden).length;
    form.querySelector("output").textContent = `${shown} of ${cards.length} examples`;
  };
  for (const form of document.querySelectorAll("form.filters")) {
    form.addEventListener("input", () => filter(form));
    form.addEventListener("submit", (event) => event.preventDefault());
    filter(form);
  }

  dark.addEventListener("change", redraw);
  addEventListener("beforeprint", drawAll);
  for (const plot of plots()) near.observe(plot);
  document.documentElement.dataset.readyAfter = performance.now();
  document.documentElement.dataset.ready = "true";
})();
