"use strict";
(() => {
  const root = document.documentElement, button = document.querySelector("nav button");
  const dark = window.matchMedia("(prefers-color-scheme: dark)"), touch = window.matchMedia("(pointer: coarse)");
  const plots = [...document.querySelectorAll(".plot")];
  const drawn = new Set();
  let ready = 0;
  const colour = (name) => {  // a custom property as the colour that it comes to
    const probe = document.createElement("i");
    probe.style.color = `var(${name})`;
    root.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  };
  const themed = () => ({ "font.color": colour("--text"), "hoverlabel.bgcolor": colour("--card"),
    "hoverlabel.font.color": colour("--text") });
  const draw = (place) => {
    if (drawn.has(place)) return;
    drawn.add(place);
    const figure = JSON.parse(document.getElementById(place.dataset.figure).textContent);
    if (touch.matches) figure.layout.dragmode = false;  // or a finger on a plot could not scroll the page
    const config = { responsive: true, displaylogo: false, displayModeBar: touch.matches ? false : "hover" };
    Plotly.newPlot(place, figure.data, figure.layout, config)
      .then(() => Plotly.relayout(place, themed())).then(() => { ready += 1; });
  };
  const drawAll = () => plots.forEach(draw);
  const near = new IntersectionObserver((seen) => {
    seen.filter((s) => s.isIntersecting).forEach((s) => { near.unobserve(s.target); draw(s.target); });
  }, { rootMargin: "400px" });
  plots.forEach((place) => near.observe(place));
  const repaint = () => drawn.forEach((place) => Plotly.relayout(place, themed()));
  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
  const label = () => { button.textContent = isDark() ? "light" : "dark"; };
  button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; label(); repaint(); });
  dark.addEventListener("change", () => { label(); repaint(); });
  window.addEventListener("beforeprint", drawAll);
  label();
  window.report = { drawAll, ready: () => ready, plots: plots.length };
})();
