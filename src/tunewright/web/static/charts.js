"use strict";
// Charts by uPlot in the colours of the page: `tunewright.chart(element, series)` gives what new data is handed to.
(() => {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const shown = [];

  function short(value) {
    if (value === null || value === undefined) return "—";
    const size = Math.abs(value);
    if (value !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(1);
    return String(Number(value.toPrecision(4)));
  }

  function seriesOf(one) {
    return {
      label: one.label,
      stroke: () => colour(one.colour),
      width: one.width || 2,
      dash: one.dash,
      spanGaps: true,
      points: one.dots ? { show: true, size: 7, fill: () => colour(one.colour) } : { show: false },
      value: (_, value) => short(value),
    };
  }

  function axis(of) {
    return {
      stroke: () => colour("--soft"),
      grid: { stroke: () => colour("--rule"), width: 1 },
      ticks: { stroke: () => colour("--rule"), width: 1 },
      font: "12px system-ui, sans-serif",
      size: of === "y" ? 58 : 34,
      values: (_, values) => values.map((value) => (of === "x" && value % 1 ? "" : short(value))),
    };
  }

  function chart(element, series, legend = true) {
    const options = {
      width: element.clientWidth || 300,
      height: element.clientHeight || 160,
      scales: { x: { time: false } },
      axes: [axis("x"), axis("y")],
      legend: { show: legend, live: true },
      cursor: { points: { size: 6 } },
      series: [{ label: "step", value: (_, value) => short(value) }, ...series.map(seriesOf)],
    };
    const plot = new uPlot(options, [[], ...series.map(() => [])], element);
    const fit = () => plot.setSize({ width: element.clientWidth, height: options.height });
    new ResizeObserver(() => { if (element.clientWidth) fit(); }).observe(element);
    shown.push(plot);
    return plot;
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    shown.forEach((plot) => plot.redraw());
  });

  // The mean of each point and its neighbours on either side: no lag, shorter at the ends.
  function smoothed(values, reach) {
    return values.map((_, index) => {
      const width = Math.min(reach, index, values.length - 1 - index);
      const near = values.slice(index - width, index + width + 1).filter((value) => value !== null);
      return near.length ? near.reduce((sum, value) => sum + value, 0) / near.length : null;
    });
  }

  Object.assign(window.tunewright, { chart, smoothed, short });
})();
