// Draws the plots of a report with plotly.js, which the page carries, and keeps theme and filters.
(async () => {
  "use strict";
  const byId = (id) => document.getElementById(id);
  // Data and library are stored gzipped: plotly.js is 4.8 MB of text, and 2 MB here.
  const unpacked = async (id) => {
    const packed = Uint8Array.from(atob(byId(id).textContent), (character) => character.charCodeAt(0));
    return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  };
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const coarse = matchMedia("(pointer: coarse)").matches;
  let printing = false;
  let report;

  // A page opened from disk may have no storage: choices then last as long as the page.
  const remembered = (store, key) => { try { return window[store].getItem(key); } catch { return null; } };
  const remember = (store, key, value) => { try { window[store].setItem(key, value); } catch { /* see above */ } };

  // ---- Theme -------------------------------------------------------------------------------------------
  const theme = byId("theme");
  theme.value = remembered("localStorage", "fedprune-theme") || "system";
  const applyTheme = () => {
    if (theme.value === "system") root.removeAttribute("data-theme");
    else root.dataset.theme = theme.value;
  };
  applyTheme();
  const dark = () => !printing && (theme.value === "dark" || (theme.value === "system" && system.matches));
  const colours = () => dark()
    ? { ink: "#e6eaee", grid: "#2c353f", line: "#5a6673", page: "#14181d" }
    : { ink: "#1b2127", grid: "#e3e8ed", line: "#8a949e", page: "#ffffff" };
  // The colours that cannot be told from a dark page, and what stands for them there. An alpha may follow.
  const LIGHTER = {
    "#000000": "#f2f2f2", "#0072B2": "#4aa3df", "#482878": "#a98ae0", "#3E4A89": "#8093e0", "#31688E": "#5a9cc8",
  };
  const tinted = (colour) => dark() ? (LIGHTER[colour.slice(0, 7)] ?? colour.slice(0, 7)) + colour.slice(7) : colour;

  // ---- Reload ------------------------------------------------------------------------------------------
  const follow = byId("follow");
  if (follow) {
    follow.checked = remembered("sessionStorage", "fedprune-follow") !== "no";
    follow.addEventListener("change", () => remember("sessionStorage", "fedprune-follow", follow.checked ? "yes" : "no"));
  }
  const keepUp = () => {
    if (follow) setInterval(() => { if (follow.checked) location.reload(); }, 1000 * Number(follow.dataset.seconds));
  };

  // ---- Filters -----------------------------------------------------------------------------------------
  const form = byId("filters");
  const boxes = form ? [...form.querySelectorAll("input[type=checkbox]")] : [];
  const unchecked = new Set(JSON.parse(remembered("sessionStorage", "fedprune-hidden") || "[]"));
  // What was hidden before a reload stays hidden; a page that is opened anew shows everything.
  if (follow) for (const box of boxes) box.checked = !unchecked.has(box.dataset.key + "=" + box.value);
  const isShown = (number) => {
    const group = report.groups[number];
    return boxes.every((box) => box.checked
      || (box.dataset.key === "" ? group.variant !== box.value : group.values[box.dataset.key] !== box.value));
  };

  // ---- Swatches and legends ----------------------------------------------------------------------------
  const SHAPES = {
    circle: "M10 6a4 4 0 1 0 8 0a4 4 0 1 0-8 0", square: "M10.5 2.5h7v7h-7z", diamond: "M14 1l5 5-5 5-5-5z",
    "triangle-up": "M14 1.5l5 8.5H9z", "triangle-down": "M14 10.5l5-8.5H9z",
    cross: "M12.5 1.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
    x: "M11 1l3 3 3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3-3-3z",
    star: "M14 .5l1.5 3.8 4 .3-3.1 2.6 1 4L14 9l-3.4 2.2 1-4-3.1-2.6 4-.3z",
  };
  const DASHES = { solid: "", dash: "6 3", dot: "2 2", dashdot: "6 2 2 2", longdash: "9 3", longdashdot: "9 2 2 2" };
  const swatch = (colour, dash, symbol) => {
    const make = (name, attributes) => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      return element;
    };
    const svg = make("svg", { class: "swatch", width: 28, height: 12, viewBox: "0 0 28 12", "aria-hidden": "true" });
    svg.append(make("path", { d: "M0 6H28", stroke: tinted(colour), "stroke-width": 2, "stroke-dasharray": DASHES[dash] ?? "" }));
    if (symbol) svg.append(make("path", { d: SHAPES[symbol], fill: tinted(colour) }));
    return svg;
  };
  const legend = (list, entries) => {
    list.replaceChildren(...entries.map(({ name, colour, dash, symbol }) => {
      const item = document.createElement("li");
      const text = document.createElement("span");
      text.textContent = name;
      item.append(swatch(colour, dash, symbol), text);
      return item;
    }));
    list.classList.toggle("long", entries.length > 24);
    if (entries.length > 24) list.tabIndex = 0;
  };

  // ---- Plotly ------------------------------------------------------------------------------------------
  const load = async () => {
    report = JSON.parse(await unpacked("report-data"));
    const script = document.createElement("script");
    script.textContent = await unpacked("plotly");
    document.head.append(script);
  };

  const axis = (own) => {
    const c = colours();
    return { automargin: true, zeroline: false, gridcolor: c.grid, linecolor: c.line, tickcolor: c.line, showline: true, ...own,
      title: { standoff: 8, ...(own.title || {}) } };
  };
  const layoutOf = (plot) => {
    const c = colours();
    return {
      ...plot.layout,
      autosize: true,
      showlegend: false,
      hovermode: "closest",
      hoverdistance: 30,
      dragmode: coarse ? false : "zoom",
      margin: { l: 50, r: 16, t: 12, b: 44 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: c.ink, family: getComputedStyle(document.body).fontFamily, size: 13 },
      hoverlabel: { align: "left", bgcolor: c.page, bordercolor: c.line, font: { color: c.ink }, namelength: -1 },
      xaxis: axis(plot.layout.xaxis),
      yaxis: axis(plot.layout.yaxis),
    };
  };
  const painted = (trace) => {
    const copy = structuredClone(trace);
    for (const part of [copy.line, copy.marker, copy.error_y]) if (part?.color) part.color = tinted(part.color);
    if (copy.fillcolor) copy.fillcolor = tinted(copy.fillcolor);
    if (copy.marker?.line) copy.marker.line.color = colours().page;
    return copy;
  };
  const draw = (element, plot) => Plotly.react(element,
    plot.data.filter((trace) => trace.meta?.group === undefined || isShown(trace.meta.group)).map(painted),
    layoutOf(plot), { displayModeBar: false, responsive: true, displaylogo: false });

  const choiceOf = (element) => {
    const select = element.dataset.choice ? byId(element.dataset.choice) : null;
    if (!select) return report.plots[element.dataset.plot];
    for (const option of select.options) {
      if (option.dataset.group !== undefined) option.disabled = !isShown(Number(option.dataset.group));
    }
    if (select.selectedOptions[0]?.disabled) {
      const first = [...select.options].findIndex((option) => !option.disabled);
      if (first >= 0) select.selectedIndex = first;
    }
    return report.plots[select.value];
  };
  const render = () => {
    const shown = report.groups.filter((_, number) => isShown(number));
    for (const element of document.querySelectorAll(".plot")) {
      const plot = choiceOf(element);
      const own = byId(element.dataset.legend);
      if (own?.dataset.of === "traces") {
        legend(own, plot.data.map((t) => ({ name: plain(t.name), colour: t.line.color, dash: t.line.dash, symbol: t.marker?.symbol })));
      }
      if (element.dataset.table) tabulate(byId(element.dataset.table), plot);
      draw(element, plot);
    }
    for (const list of document.querySelectorAll("ul.legend[data-of=groups]")) legend(list, shown);
    for (const slot of document.querySelectorAll("[data-swatch]")) {
      const { colour, dash, symbol } = JSON.parse(slot.dataset.swatch);
      slot.replaceChildren(swatch(colour, dash, symbol));
    }
    const count = byId("shown");
    if (count) {
      const text = `${shown.length} of ${report.groups.length} groups shown in the plots`;
      if (count.textContent !== text) count.textContent = text;
    }
  };
  // The plot's curves at up to eight of their points: a row a curve.
  const tabulate = (place, plot) => {
    const all = [...new Set(plot.data.flatMap((trace) => trace.x))].sort((a, b) => a - b);
    const step = Math.max(1, (all.length - 1) / 7);
    const rounds = [...new Set(Array.from({ length: Math.min(8, all.length) }, (_, n) => all[Math.round(n * step)]))];
    const make = (name, text, attributes = {}) => Object.assign(document.createElement(name), { textContent: text, ...attributes });
    const table = document.createElement("table");
    const head = document.createElement("tr");
    head.append(make("th", "layer", { scope: "col", className: "name" }),
      ...rounds.map((round) => make("th", `round ${round}`, { scope: "col" })));
    const rows = plot.data.map((trace) => {
      const row = document.createElement("tr");
      row.append(make("th", plain(trace.name), { scope: "row" }),
        ...rounds.map((round) => make("td", share(between(trace, round)))));
      return row;
    });
    const [top, body] = [document.createElement("thead"), document.createElement("tbody")];
    top.append(head);
    body.append(...rows);
    table.append(make("caption", place.getAttribute("aria-label")), top, body);
    place.replaceChildren(table);
  };
  const share = (value) => value === null ? "-" : `${Number((100 * value).toPrecision(3))}%`;
  // A curve has no points within a straight stretch.
  const between = ({ x, y }, round) => {
    const next = x.findIndex((each) => each >= round);
    if (next < 0 || round < x[0]) return null;
    if (x[next] === round) return y[next];
    return y[next - 1] + (y[next] - y[next - 1]) * (round - x[next - 1]) / (x[next] - x[next - 1]);
  };
  const plain = (text) => new DOMParser().parseFromString(text, "text/html").documentElement.textContent;

  try {
    await load();
  } catch (error) {
    for (const element of document.querySelectorAll(".plot")) {
      element.textContent = "This browser cannot draw the plots; the tables below each have their data.";
      element.style.height = "auto";
    }
    keepUp();
    return;
  }
  render();
  root.dataset.drawn = "yes";
  keepUp();  // From now on: a page that takes long to draw is seen before it reloads.

  theme.addEventListener("change", () => {
    remember("localStorage", "fedprune-theme", theme.value);
    applyTheme();
    render();
  });
  system.addEventListener("change", render);
  for (const select of document.querySelectorAll("select[data-plots]")) select.addEventListener("change", render);
  if (form) {
    form.addEventListener("change", () => {
      const hidden = boxes.filter((box) => !box.checked).map((box) => box.dataset.key + "=" + box.value);
      remember("sessionStorage", "fedprune-hidden", JSON.stringify(hidden));
      render();
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    // A form's reset takes effect after the event.
    form.addEventListener("reset", () => setTimeout(() => form.dispatchEvent(new Event("change"))));
  }

  // On paper: light, and as wide as the paper.
  const forPrint = (now) => {
    printing = now;
    root.classList.toggle("printing", now);
    if (now) root.dataset.theme = "light";
    else applyTheme();
    render();
    for (const element of document.querySelectorAll(".plot")) Plotly.Plots.resize(element);
  };
  addEventListener("beforeprint", () => forPrint(true));
  addEventListener("afterprint", () => forPrint(false));
})();
