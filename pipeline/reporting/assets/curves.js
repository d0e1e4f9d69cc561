// Draws the figures of the report with bokeh, and redraws them when a control changes. The data are in the page.
const plots = JSON.parse(document.getElementById("plot-data").textContent);
const state = { axis: 0, log: false, smoothing: 0.6, hidden: new Set() };

// Exponential moving average with bias correction, as in TensorBoard: the first value is not overweighted.
const smooth = (values, weight) => {
  let sum = 0, norm = 0;
  return values.map((value) => {
    sum = weight * sum + (1 - weight) * value;
    norm = weight * norm + (1 - weight);
    return sum / norm;
  });
};

// A range that high values of the first steps do not dominate, and whether it clips them.
const valueRange = (values, log, mayClip) => {
  const sorted = [...values].sort((a, b) => a - b);
  const low = sorted[0], top = sorted.at(-1), high = sorted[Math.floor(0.98 * (sorted.length - 1))];
  if (log) return { start: low / 1.1, end: top * 1.1, clipped: false };
  const clipped = mayClip && top - low > 2 * (high - low) && high > low;
  const end = clipped ? high : top;
  const margin = 0.05 * (end - low) || 0.05 * Math.abs(end) || 0.5;
  return { start: low - margin, end: end + margin, clipped };
};

const makePlot = (figure, width) => {
  const axis = Math.min(state.axis, figure.x.length - 1);
  const curves = figure.series.filter((one) => !state.hidden.has(one.run)).map((one) => {
    const [x, y] = [plots.arrays[one.x[axis]], plots.arrays[one.y]];
    const isSmoothed = figure.smoothed && state.smoothing > 0 && y.length > plots.few_points;
    return { ...plots.runs[one.run], x, y, isSmoothed, mean: isSmoothed ? smooth(y, state.smoothing) : y };
  });
  const values = curves.flatMap((one) => one.y);
  const isLog = state.log && values.every((value) => value > 0);
  const mayClip = curves.some((one) => one.y.length > plots.few_points);
  const range = values.length ? valueRange(values, isLog, mayClip) : { start: 0, end: 1, clipped: false };
  const end = Math.max(0, ...curves.map((one) => one.x.at(-1))) || 1;
  const plot = Bokeh.Plotting.figure({
    frame_height: 240, sizing_mode: "stretch_width", toolbar_location: "above", tools: "pan,box_zoom,reset,save",
    active_drag: null,  // otherwise a swipe that scrolls the page on a touch screen pans the plot
    x_axis_label: figure.x[axis], x_range: [0, end * 1.02],
    y_axis_type: isLog ? "log" : "linear", y_range: [range.start, range.end],
  });
  plot.toolbar.logo = null;
  const [xAxis, yAxis] = [plot.xaxes[0], plot.yaxes[0]];
  xAxis.ticker.desired_num_ticks = width < 400 ? 3 : 5;
  if (!isLog) yAxis.formatter.power_limit_low = -6;
  if (figure.x[axis] === "step") {
    xAxis.formatter = new Bokeh.NumeralTickFormatter({ format: "0,0" });
    xAxis.ticker.min_interval = 1;
  }
  const lines = curves.map((one) => {
    const texts = (numbers) => numbers.map((value) => value.toPrecision(4));
    const source = new Bokeh.ColumnDataSource({
      data: { x: one.x, y: one.y, mean: one.mean, logged: texts(one.y), smoothed: texts(one.mean) },
    });
    const draw = (field, options) =>
      plot.line({ field: "x" }, { field }, { source, name: one.name, line_color: one.color, ...options });
    if (one.y.length <= plots.few_points) plot.scatter({ field: "x" }, { field: "y" }, { source, color: one.color, size: 6 });
    if (one.isSmoothed) draw("y", { line_alpha: 0.3 });
    return draw("mean", { line_dash: one.dash, line_width: 2 });
  });
  const tooltips = [["run", "$name"], [figure.x[axis], figure.x[axis] === "step" ? "@x{0,0}" : "@x{0.000}"]];
  if (curves.some((one) => one.isSmoothed)) tooltips.push(["smoothed", "@smoothed"]);
  plot.add_tools(new Bokeh.HoverTool({ renderers: lines, visible: false, tooltips: [...tooltips, ["logged", "@logged"]] }));
  return { plot, notes: [
    range.clipped ? "High values are above the visible range; pan to see them." : "",
    state.log && !isLog ? "Linear scale, because some values are not positive." : "",
  ].filter(Boolean).join(" ") };
};

const documents = new Map();  // bokeh keeps every document, so each figure has one, whose plot is replaced
const draw = async (target) => {
  const { plot, notes } = makePlot(plots.figures[target.dataset.figure], target.clientWidth);
  target.nextElementSibling.textContent = notes;
  const drawn = documents.get(target);
  if (drawn) {
    drawn.clear();
    drawn.add_root(plot);
  } else {
    await Bokeh.Plotting.show(plot, target);
    documents.set(target, plot.document);
  }
};

// Draws one figure after the other, those in view first. A call during this makes it start again.
let requested = 0, isDrawing = false;
const redraw = async () => {
  requested += 1;
  if (isDrawing) return;
  isDrawing = true;
  const distance = (target) => {
    const { top, bottom } = target.getBoundingClientRect();
    return Math.abs(top + bottom - innerHeight);
  };
  for (let drawn = 0; drawn !== requested;) {
    drawn = requested;
    const targets = [...document.querySelectorAll(".plot")].sort((a, b) => distance(a) - distance(b));
    while (targets.length && drawn === requested) {
      await draw(targets.shift());
      await new Promise((resolve) => setTimeout(resolve));  // lets the page respond
    }
  }
  isDrawing = false;
};

const controls = document.getElementById("plot-controls");
if (controls) {
  controls.hidden = false;
  controls.addEventListener("input", () => {
    const [smoothing, axis, log] = ["smoothing", "axis", "log"].map((name) => controls.elements[name]);
    Object.assign(state, { smoothing: Number(smoothing.value), axis: Number(axis.value), log: log.checked });
    controls.elements["smoothing-value"].value = state.smoothing.toFixed(2);
    redraw();
  });
}
const buttons = [...document.querySelectorAll(".legend button")];
for (const button of buttons) {
  button.disabled = false;
  button.addEventListener("click", () => {
    const run = Number(button.dataset.run), isShown = state.hidden.has(run);
    state.hidden[isShown ? "delete" : "add"](run);
    for (const one of buttons) if (one.dataset.run === button.dataset.run) one.setAttribute("aria-pressed", isShown);
    redraw();
  });
}
redraw();
