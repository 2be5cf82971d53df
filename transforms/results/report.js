// Filters and sorts what stands in the page; without it everything is there, the most confident first.
"use strict";

const controls = document.getElementById("controls");
const field = (name) => controls.querySelector(`[name=${name}]`);

const DISTANCES = [...field("distance").options].map((option) => option.value);

// An extraction says its values by name: a card in its list of terms, a row in its cells below the table's heads.
class Extraction {
  constructor(element) { this.element = element; }

  get values() {
    const { element } = this;
    const named = element.cells
      ? [...element.closest("table").tHead.rows[0].cells].map((head, place) => [head, element.cells[place]])
      : [...element.querySelectorAll("dt")].map((term) => [term, term.nextElementSibling]);
    const values = Object.fromEntries(named.map(([name, value]) => [name.textContent, value.textContent]));
    // As they were measured; what can be read is rounded.
    element.dataset.exact.split(" ").forEach((value, place) => { values[DISTANCES[place]] = value; });
    Object.defineProperty(this, "values", { value: values });
    return values;
  }

  get text() {
    const text = [...this.element.querySelectorAll(".words")].map((words) => words.textContent).join("\n").toLowerCase();
    Object.defineProperty(this, "text", { value: text });
    return text;
  }

  number(name) { return this.values[name] === "–" ? Infinity : Number(this.values[name]); }

  called(verdict) { return this.values[verdict] === "yes"; }

  // "copied, not seen": each name that begins with "not " must not be called.
  fits(verdicts) {
    return verdicts === "" || verdicts.split(", ").every((name) => (name.startsWith("not ") ? !this.called(name.slice(4)) : this.called(name)));
  }

  get verdicts() { return 4 * this.called("copied") + 2 * this.called("seen") + this.called("paper's rule"); }
}

const lists = [...document.querySelectorAll(".extractions")].map((list) => ({
  list, items: [...list.children].map((element) => new Extraction(element)),
}));

function filter() {
  const text = field("text").value.trim().toLowerCase();
  const verdict = field("verdict").value;
  const most = field("most").value === "" ? Infinity : Number(field("most").value);
  let shown = 0;
  const items = lists.flatMap((each) => each.items);
  for (const item of items) {
    const fits = (text === "" || item.text.includes(text)) && item.fits(verdict)
      && (most === Infinity || item.number(field("distance").value) <= most);
    item.element.hidden = !fits;
    shown += fits ? 1 : 0;
  }
  field("shown").value = `${shown.toLocaleString("en")} of ${items.length.toLocaleString("en")} shown`;
}

// Negative: a comes first. What ties stays in order of confidence.
const compare = (one, other) => (one === other ? 0 : one < other ? -1 : 1);
const ORDERS = {
  text: (a, b) => a.text.localeCompare(b.text),
  verdict: (a, b) => b.verdicts - a.verdicts,
  copies: (a, b) => b.number("copies") - a.number("copies"),
};

function sort() {
  const name = field("order").value;
  const order = ORDERS[name] ?? ((a, b) => compare(a.number(name), b.number(name)));
  // Each list by itself, as the page says: a card is no row of a table.
  for (const { list, items } of lists) {
    items.sort((a, b) => order(a, b) || a.number("rank") - b.number("rank"));
    list.append(...items.map((item) => item.element));
  }
}

controls.hidden = false;
controls.addEventListener("input", (event) => (event.target.name === "order" ? sort() : filter()));
filter();
