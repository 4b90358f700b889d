const data = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 700px)");

// Ink, page and grid are exchanged as whole JSON values; all other colours are readable on both pages.
function draw(box) {
  const { wide, narrow: column } = data.figures[Number(box.id.replace("figure-", ""))];
  let text = (narrow.matches && column) || wide;
  if (dark.matches) for (const [from, to] of data.tones) text = text.replaceAll(`"${from}"`, `"${to}"`);
  const { data: traces, layout } = JSON.parse(text);
  box.style.minWidth = narrow.matches && column ? "" : box.dataset.width + "px";
  box.style.height = layout.height + "px";
  Plotly.react(box, traces, layout, { responsive: true, ...data.config });
  box.dataset.drawn = "yes";
}

// A figure is drawn when it comes near the screen: a page of many opens as quickly as a page of one.
const boxes = [...document.querySelectorAll(".figure")];
const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    draw(target);
  }
}, { rootMargin: "600px" });
boxes.forEach((box) => near.observe(box));
const again = () => boxes.filter((box) => box.dataset.drawn).forEach(draw);
dark.addEventListener("change", again);
narrow.addEventListener("change", again);
addEventListener("beforeprint", () => boxes.forEach(draw));

const table = document.getElementById("runs"), body = table.tBodies[0];
const rows = [...body.rows], search = document.getElementById("search"), count = document.getElementById("count");
const { names, values, of } = data.parameters;

function* parameters(row) {
  const pairs = of[Number(row.dataset.run)];
  for (let i = 0; i < pairs.length; i += 2) yield [names[pairs[i]], values[pairs[i + 1]]];
}

const opened = (row) => row.nextElementSibling?.classList.contains("parameters") ? row.nextElementSibling : null;

function toggle(row) {
  const shown = opened(row);
  row.querySelector("button").setAttribute("aria-expanded", String(!shown));
  if (shown) return shown.remove();
  const list = document.createElement("dl");
  for (const [name, value] of parameters(row)) {
    list.append(Object.assign(document.createElement("dt"), { textContent: name }));
    list.append(Object.assign(document.createElement("dd"), { textContent: value }));
  }
  const below = document.createElement("tr"), cell = document.createElement("td");
  below.className = "parameters";
  cell.colSpan = row.cells.length;
  cell.append(list);
  below.append(cell);
  row.after(below);
}

const key = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
const compare = (a, b) => (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);

function sort(button, column) {
  const heading = button.parentElement;
  const way = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
  rows.filter(opened).forEach(toggle);
  rows.sort((a, b) => way * compare(key(a, column), key(b, column)));
  body.append(...rows);
}

// Every run with all its parameters as text, made when somebody searches first.
let texts;
const text = (row) => [row.textContent, ...[...parameters(row)].map(([name, value]) => `${name}=${value}`)].join(" ");

function find() {
  texts ??= new Map(rows.map((row) => [row, text(row).toLowerCase()]));
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let n = 0;
  for (const row of rows) {
    row.hidden = !words.every((word) => texts.get(row).includes(word));
    n += !row.hidden;
    const below = opened(row);
    if (below) below.hidden = row.hidden;
  }
  count.textContent = words.length ? `${n} of ${rows.length} runs` : `${rows.length} runs`;
}

table.querySelectorAll("th button").forEach((button, column) => button.addEventListener("click", () => sort(button, column)));
body.addEventListener("click", ({ target }) => target.closest("td button") && toggle(target.closest("tr")));
search.addEventListener("input", find);
addEventListener("keydown", (event) => {
  if (event.target === search && event.key === "Escape") {
    search.value = "";
    find();
    search.blur();
  } else if (event.key === "/" && event.target !== search && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    search.focus();
  }
});
