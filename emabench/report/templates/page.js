// Sorting, filtering, tips and downloads. The page is complete without it and loads nothing.
"use strict";
const all = (what, where = document) => [...where.querySelectorAll(what)];
const made = (tag, text = "", into = null) => {
  const element = document.createElement(tag);
  element.textContent = text;
  if (into) into.append(element);
  return element;
};

// Sort: a click on a column's head; numbers by value ("−1.5" too), all else by name.
const number = (text) => {
  const found = text.replaceAll("−", "-").replaceAll("+", "").replace(/(\d) (?=\d{3})/g, "$1").match(/^\s*-?\d*\.?\d+(e-?\d+)?/i);
  return found ? Number(found[0]) : NaN;
};
const order = (a, b) => {
  const x = number(a), y = number(b);
  if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
  return Number.isNaN(x) ? a.localeCompare(b) : x - y;
};
for (const table of all("table")) {
  const body = table.tBodies[0];
  if (!table.tHead || !body || body.rows.length < 3) continue;
  all("thead th", table).forEach((head, column) => {
    head.classList.add("sorts");
    head.tabIndex = 0;
    const sort = () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      all("thead th", table).forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const text = (row) => (row.cells[column]?.querySelector(".value") ?? row.cells[column])?.textContent.trim() ?? "";
      const rows = [...body.rows].sort((a, b) => {
        if (!text(a) !== !text(b)) return text(a) ? -1 : 1;
        return (up ? 1 : -1) * order(text(a), text(b));
      });
      body.append(...rows);
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
  });
}

// Filter: cards, claims and rows that hold every word.
const filtered = all(".card, .claims > li, .cells tbody tr, .plain tbody tr");
const field = made("input");
field.type = "search";
field.placeholder = "Filter claims and rows";
field.setAttribute("aria-label", field.placeholder);
field.addEventListener("input", () => {
  const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const each of filtered) {
    const text = each.textContent.toLowerCase();
    each.hidden = !words.every((word) => text.includes(word));
  }
});
const bar = made("div");
bar.className = "filter";
bar.append(field);
document.querySelector(".top").append(bar);

// Tips: what a mark stands for, at once; and the same seed everywhere in the figure.
const tip = made("div", "", document.body);
tip.id = "tip";
tip.hidden = true;
for (const svg of all(".plot svg")) {
  const marks = all("circle, path, line", svg).filter((mark) => mark.querySelector("title"));
  for (const mark of marks) {
    const text = mark.querySelector("title").textContent;
    mark.setAttribute("aria-label", text);
    mark.querySelector("title").remove(); // the browser's own tip would lie over this one
    mark.addEventListener("pointerenter", (event) => {
      tip.textContent = text;
      tip.hidden = false;
      tip.style.left = Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8) + "px";
      tip.style.top = Math.max(event.clientY - tip.offsetHeight - 10, 4) + "px";
      if (mark.dataset.seed) all(`[data-seed="${mark.dataset.seed}"]`, svg).forEach((each) => each.classList.add("same"));
    });
    mark.addEventListener("pointerleave", () => {
      tip.hidden = true;
      all(".same", svg).forEach((each) => each.classList.remove("same"));
    });
  }
}

// Figures as files, on white whatever the page is on.
const save = (href, name) => {
  const link = made("a", "", document.body);
  link.href = href;
  link.download = name;
  link.click();
  link.remove();
};
const alone = (svg) => {
  const copy = svg.cloneNode(true), [, , width, height] = svg.getAttribute("viewBox").split(" ");
  copy.setAttribute("width", width);
  copy.setAttribute("height", height);
  const style = document.createElementNS(copy.namespaceURI, "style");
  style.textContent = FIGURE_STYLE;
  const paper = document.createElementNS(copy.namespaceURI, "rect");
  for (const [key, value] of Object.entries({ width, height, fill: "#ffffff" })) paper.setAttribute(key, value);
  copy.prepend(style, paper);
  return { text: new XMLSerializer().serializeToString(copy), width: Number(width), height: Number(height) };
};
const address = (text) => "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text);
for (const figure of all("figure.plot[data-name]")) {
  const svg = figure.querySelector("svg"), name = figure.dataset.name;
  const row = made("div", "", figure);
  row.className = "save";
  made("button", "SVG", row).addEventListener("click", () => save(address(alone(svg).text), name + ".svg"));
  made("button", "PNG", row).addEventListener("click", () => {
    const { text, width, height } = alone(svg), picture = new Image();
    picture.onload = () => {
      const canvas = made("canvas");
      canvas.width = 3 * width;
      canvas.height = 3 * height;
      canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
      save(canvas.toDataURL("image/png"), name + ".png");
    };
    picture.src = address(text);
  });
}

// A link to something folded opens it.
const unfold = () => {
  let at = location.hash.length > 1 ? document.getElementById(decodeURIComponent(location.hash.slice(1))) : null;
  for (; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
};
addEventListener("hashchange", unfold);
unfold();
