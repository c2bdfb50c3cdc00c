"use strict";
// Tabs, sorting, the theme, the pickers, and drawing each plot when it is first seen. Without this script the page shows everything.
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const figures = JSON.parse(document.getElementById("figures").textContent);

  // Theme: the system's, until the button is used; the choice is kept where the browser allows it.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const themeButton = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const stored = (value) => {
    try {
      if (value) localStorage.setItem("gopd-merge-theme", value);
      return localStorage.getItem("gopd-merge-theme");
    } catch {
      return null; // storage is closed to this page
    }
  };
  const applyTheme = (theme) => {
    if (theme) root.dataset.theme = theme;
    themeButton.setAttribute("aria-pressed", String(isDark()));
    redraw();
  };

  // Plots: a colour "@name" is the style sheet's --name in the theme of the moment.
  const probe = document.body.appendChild(document.createElement("span"));
  probe.hidden = true;
  const color = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const themed = (value, key = "") => {
    if (Array.isArray(value)) return value.map((item) => themed(item, key));
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, themed(v, k)]));
    return typeof value === "string" && key.endsWith("color") && value[0] === "@" ? color(value.slice(1)) : value;
  };
  const axis = (own, narrow) => ({
    gridcolor: color("grid"), linecolor: color("line"), zeroline: false, automargin: true, fixedrange: narrow, tickfont: { size: narrow ? 11 : 12 },
    ...own, title: { font: { size: 12, color: color("muted") }, standoff: 8, ...own?.title },
  });
  const draw = (box) => {
    const figure = themed(figures[box.dataset.figure]);
    const narrow = box.clientWidth < 420;
    const layout = {
      ...figure.layout,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: narrow ? false : "zoom",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: color("ink") },
      margin: { l: 8, r: 16, t: 8, b: 8 }, showlegend: figure.layout.showlegend ?? figure.data.length > 1,
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", font: { size: 12 } },
      hoverlabel: { bgcolor: color("surface"), bordercolor: color("muted"), font: { color: color("ink") }, align: "left" },
      xaxis: axis(figure.layout.xaxis, narrow), yaxis: axis(figure.layout.yaxis, narrow),
    };
    Plotly.react(box, figure.data, layout, { displayModeBar: false, responsive: true });
    box.dataset.drawn = "1";
  };
  const seen = (box) => box.offsetParent !== null;
  const drawSeen = () => window.Plotly && all(".plot:not([data-drawn])").filter(seen).forEach(draw);
  const redraw = () => {
    if (!window.Plotly) return;
    all(".plot[data-drawn]").forEach((box) => (seen(box) ? draw(box) : delete box.dataset.drawn)); // a hidden one when it is next seen
    drawSeen();
  };

  // Tabs, as the ARIA practices describe them: arrows, Home and End move and open.
  const tabs = all('[role="tab"]');
  const panels = tabs.map((tab) => document.getElementById(tab.getAttribute("aria-controls")));
  const open = (index, focus) => {
    tabs.forEach((tab, i) => {
      tab.setAttribute("aria-selected", String(i === index));
      tab.tabIndex = i === index ? 0 : -1;
      panels[i].hidden = i !== index;
    });
    if (focus) tabs[index].focus();
    drawSeen();
  };
  document.querySelector(".tabs").hidden = false;
  tabs.forEach((tab, index) => {
    const panel = panels[index];
    panel.setAttribute("role", "tabpanel");
    panel.setAttribute("aria-labelledby", tab.id);
    panel.tabIndex = 0;
    tab.addEventListener("click", () => {
      open(index, false);
      history.replaceState(null, "", `#${panel.id}`);
    });
    tab.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: tabs.length - 1 };
      if (!(event.key in steps)) return;
      event.preventDefault();
      open((steps[event.key] + tabs.length) % tabs.length, true);
    });
  });
  const linked = () => panels.findIndex((panel) => `#${panel.id}` === location.hash);
  open(Math.max(0, linked()), false);
  addEventListener("hashchange", () => linked() >= 0 && open(linked(), false));

  // Sorting: by number where cells carry one, else by text; cells without a value stay last.
  const value = (row, column) => {
    const cell = row.cells[column];
    if ("value" in cell.dataset) return Number(cell.dataset.value);
    return ["–", ""].includes(cell.textContent.trim()) ? null : cell.textContent.trim();
  };
  const order = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
  all("table.sortable").forEach((table) => {
    const heads = all("thead th", table);
    heads.forEach((head) => {
      head.querySelector("button").addEventListener("click", () => {
        const first = head.classList.contains("num") ? "descending" : "ascending";
        const now = head.getAttribute("aria-sort");
        const next = now === "none" ? first : now === "ascending" ? "descending" : "ascending";
        heads.forEach((other) => other.setAttribute("aria-sort", other === head ? next : "none"));
        const sign = next === "ascending" ? 1 : -1;
        const keyed = [...table.tBodies[0].rows].map((row) => [value(row, head.cellIndex), row]);
        keyed.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : sign * order(a, b)));
        table.tBodies[0].append(...keyed.map(([, row]) => row));
      });
    });
  });

  // Pickers: one training run, one question at a time.
  const run = document.getElementById("run");
  const showRun = () => {
    all(".run").forEach((block) => (block.hidden = run && block.id !== run.value));
    drawSeen();
  };
  run?.addEventListener("change", showRun);
  showRun();
  const question = document.getElementById("question");
  if (question) {
    const divided = document.getElementById("divided");
    const options = [...question.options];
    const show = () => all(".question").forEach((article) => (article.hidden = article.id !== question.value));
    const step = (by) => {
      const open = [...question.options];
      question.selectedIndex = (question.selectedIndex + by + open.length) % open.length;
      show();
    };
    question.addEventListener("change", show);
    document.getElementById("previous").addEventListener("click", () => step(-1));
    document.getElementById("next").addEventListener("click", () => step(1));
    divided.addEventListener("change", () => {
      const chosen = question.value;
      question.replaceChildren(...options.filter((option) => !divided.checked || option.dataset.divided === "1"));
      question.value = chosen;
      if (question.selectedIndex < 0) question.selectedIndex = 0;
      show();
    });
    show();
  }

  // Paper shows every section in the light theme; plots take their size from what is laid out, so all are shown first.
  let before = null;
  const toPaper = () => {
    if (before) return;
    before = { theme: root.dataset.theme, hidden: all(".panel[hidden], .question[hidden]") };
    before.hidden.forEach((element) => (element.hidden = false));
    applyTheme("light");
  };
  const fromPaper = () => {
    if (!before) return;
    before.hidden.forEach((element) => (element.hidden = true));
    const { theme } = before;
    before = null;
    if (theme) root.dataset.theme = theme;
    else delete root.dataset.theme;
    applyTheme();
  };
  addEventListener("beforeprint", toPaper);
  addEventListener("afterprint", fromPaper);
  matchMedia("print").addEventListener("change", (event) => (event.matches ? toPaper() : fromPaper()));

  themeButton.hidden = false;
  themeButton.addEventListener("click", () => applyTheme(stored(isDark() ? "light" : "dark") ?? (isDark() ? "light" : "dark")));
  dark.addEventListener("change", () => applyTheme());
  applyTheme(stored());
  addEventListener("DOMContentLoaded", drawSeen); // plotly's script follows this one
})();
