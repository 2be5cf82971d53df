// Filters and sorts what stands in the page; without it everything is there, the most confident first.
"use strict";

const NUMBERS = ["rank", "l2", "tiled_l2", "adaptive_l2", "copies"];

function read(element) {
  const values = element.dataset.numbers.split(" ");
  const item = { element, verdicts: element.dataset.verdicts, cache: null };
  NUMBERS.forEach((name, place) => { item[name] = values[place] === "-" ? Infinity : Number(values[place]); });
  return item;
}

function text(item) {
  item.cache ??= [...item.element.querySelectorAll(".words")].map((words) => words.textContent).join("\n").toLowerCase();
  return item.cache;
}

const controls = document.getElementById("controls");
const lists = [...document.querySelectorAll(".extractions")].map((list) => ({ list, items: [...list.children].map(read) }));
const field = (name) => controls.querySelector(`[name=${name}]`);

// Negative: a first. Both verdicts come before one, one before the other; ties stay in order of confidence.
const ORDERS = {
  text: (a, b) => text(a).localeCompare(text(b)),
  verdict: (a, b) => b.verdicts.length - a.verdicts.length,
  copies: (a, b) => b.copies - a.copies,
};

function filter() {
  const wanted = field("text").value.trim().toLowerCase();
  const verdict = field("verdict").value;
  const distance = field("distance").value;
  const most = field("most").value === "" ? Infinity : Number(field("most").value);
  let shown = 0, all = 0;
  for (const { items } of lists) {
    for (const item of items) {
      const hidden = item[distance] > most || !verdict.split(" ").every((name) => item.verdicts.includes(name))
        || (wanted !== "" && !text(item).includes(wanted));
      item.element.hidden = hidden;
      shown += hidden ? 0 : 1;
      all += 1;
    }
  }
  field("shown").value = `${shown.toLocaleString("en")} of ${all.toLocaleString("en")} shown`;
}

function sort() {
  const name = field("order").value;
  const order = ORDERS[name] ?? ((a, b) => (a[name] === b[name] ? 0 : a[name] - b[name]));
  for (const { list, items } of lists) {
    list.append(...items.sort((a, b) => order(a, b) || a.rank - b.rank).map((item) => item.element));
  }
}

if (controls) {
  controls.hidden = false;
  controls.addEventListener("input", (event) => (event.target.name === "order" ? sort() : filter()));
  filter();
}
