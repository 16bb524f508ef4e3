// Draws the charts of a page at its width and in its colours; its legend leaves runs out of all of them at once.
const themes = JSON.parse(document.getElementById("themes").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const figures = [...document.querySelectorAll("figure[data-chart]")];
const buttons = [...document.querySelectorAll("button[data-group]")];
const drawn = new Map(); // figure -> what vegaEmbed returned

function hidden() {
  return buttons.filter((button) => button.ariaPressed === "false").map((button) => button.dataset.group);
}

async function draw(figure) {
  const spec = JSON.parse(figure.querySelector("script").textContent);
  const room = figure.clientWidth, theme = dark.matches ? "dark" : "light", before = drawn.get(figure);
  spec.columns = Math.max(1, Math.min(spec.columns, Math.floor(room / 320)));
  spec.spec.width = Math.floor((room - 70 - spec.spacing * (spec.columns - 1)) / spec.columns);
  spec.facet.header.labelLimit = spec.spec.width;
  for (const param of spec.params ?? []) {
    if (param.name === "hidden") param.value = hidden();
    if (param.name === "at" && before) param.value = before.view.signal("at");
  }
  const legend = { ...themes[theme].legend, disable: true, columns: room < 700 ? 1 : 4 };
  const config = { ...themes[theme], legend };
  before?.finalize();
  const place = figure.querySelector(".chart");
  const options = { config, ast: true, actions: false, renderer: "svg", logLevel: 1, tooltip: { theme } };
  const result = await vegaEmbed(place, spec, options);
  drawn.set(figure, result);
  // The labels are as wide as they are, and what they need changes with the width.
  for (let i = 0; i < 4; i++) {
    const over = place.querySelector("svg, canvas").getBoundingClientRect().width - room;
    if (over <= 0) break;
    const narrower = result.view.signal("child_width") - Math.ceil(over / spec.columns);
    await result.view.signal("child_width", narrower).resize().runAsync();
  }
}

async function drawAll() {
  for (const figure of figures) {
    try {
      await draw(figure);
    } catch (error) {
      figure.querySelector(".chart").textContent = `This chart could not be drawn: ${error.message}`;
      console.error(error);
    }
  }
  document.documentElement.dataset.drawn = figures.length;
}

for (const button of buttons) {
  button.addEventListener("click", () => {
    button.ariaPressed = button.ariaPressed === "false";
    for (const { view, spec } of drawn.values()) {
      if (spec.params?.some((param) => param.name === "hidden")) view.signal("hidden", hidden()).runAsync();
    }
  });
}
let width = innerWidth, pause;
addEventListener("resize", () => {
  clearTimeout(pause); // a phone's bars come and go: only another width is another layout
  if (innerWidth !== width) pause = setTimeout(() => ((width = innerWidth), drawAll()), 200);
});
dark.addEventListener("change", drawAll);
drawAll();
