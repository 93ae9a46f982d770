
"use strict";
(() => {
  const root = document.documentElement, theme = document.getElementById("theme");
  const names = { "": "automatic", light: "light", dark: "dark" };
  let chosen = "";
  const show = () => {
    if (chosen) root.dataset.theme = chosen; else delete root.dataset.theme;
    theme.textContent = `Appearance: ${names[chosen]}`;
  };
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const order = Object.keys(names);
    chosen = order[(order.indexOf(chosen) + 1) % order.length];
    show();
  });
})();

(() => {
  const held = document.getElementById("network-data");
  if (!held) return;
  const data = JSON.parse(held.textContent), count = data.ids.length, PAGE = 60;
  const $ = (id) => document.getElementById(id);
  const make = (tag, classes, text) => {
    const made = document.createElement(tag);
    if (classes) made.className = classes;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const whole = (number) => number.toLocaleString("en-US");
  const figure = (value) => {
    if (value === null || typeof value === "string") return value;
    const size = Math.abs(value);
    return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2).replace("e+", "e") : String(Number(value.toPrecision(4)));
  };
  const rank = (value) => value === null ? -1 : typeof value === "string" ? Infinity : value;
  const all = [...Array(count).keys()];
  const texts = all.map((at) =>
    [data.ids[at], data.nodes[at], data.ops[data.op[at]], data.scopes[data.scope[at]].join("/")].join("\n").toLowerCase());
  const rules = [...new Set(all.filter((at) => data.reason[at] >= 0).map((at) => data.reasons[data.reason[at]][0]))].filter(Boolean);
  let path = [], shown = PAGE, picked = -1;

  const fill = (select, entries) => entries.sort().forEach((entry) => select.append(new Option(entry, entry)));
  fill($("reason"), rules);
  fill($("operator"), [...new Set(data.op.map((number) => data.ops[number]))]);
  if (!rules.length) $("reason").parentElement.hidden = true;
  for (const [key, column] of [["added", data.added], ["drift", data.drift], ["largest", data.largest]])
    if (column.every((value) => value === null)) $("order").querySelector(`[value=${key}]`).remove();

  const matches = () => {
    const words = $("words").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const precision = $("held").value, rule = $("reason").value, op = $("operator").value;
    return all.filter((at) => {
      const half = data.reason[at] < 0;
      return (!precision || (precision === "half") === half)
        && (!rule || (!half && data.reasons[data.reason[at]][0] === rule))
        && (!op || data.ops[data.op[at]] === op)
        && words.every((word) => texts[at].includes(word));
    });
  };
  const within = (at, prefix) => {
    const scope = data.scopes[data.scope[at]];
    return prefix.every((part, depth) => scope[depth] === part);
  };
  /* Go down where there is only one way. */
  const deepest = (places, prefix) => {
    let found = prefix;
    for (;;) {
      const next = new Set(places.map((at) => data.scopes[data.scope[at]][found.length]));
      if (next.size !== 1 || next.has(undefined)) return found;
      found = [...found, [...next][0]];
    }
  };
  const crumb = (text, target, current) => {
    const item = make("li");
    if (current) {
      item.append(make("span", "", text));
      item.firstChild.setAttribute("aria-current", "location");
    } else {
      const button = make("button", "", text);
      button.type = "button";
      button.addEventListener("click", () => go(target, true));
      item.append(button);
    }
    return item;
  };
  const go = (target, focus) => {
    path = target; shown = PAGE; picked = -1;
    draw();
    if (focus) $("count").focus();
  };
  const modules = (inside) => {
    const groups = new Map();
    for (const at of inside) {
      const name = data.scopes[data.scope[at]][path.length];
      if (name === undefined) continue;
      const group = groups.get(name) || { places: [], kept: 0 };
      group.places.push(at);
      group.kept += data.reason[at] >= 0;
      groups.set(name, group);
    }
    const items = [...groups].map(([name, group]) => {
      const item = make("li"), button = make("button"), bar = make("meter"), total = group.places.length;
      const target = deepest(group.places, [...path, name]);
      button.type = "button";
      bar.max = total; bar.value = group.kept;
      bar.setAttribute("aria-hidden", "true");
      button.append(make("span", "name", target.slice(path.length).join("/")), bar, make("span", "amount", `${whole(group.kept)} of ${whole(total)} FP32`));
      button.addEventListener("click", () => go(target, true));
      item.append(button);
      return item;
    });
    $("modules").replaceChildren(...items);
    $("modules").hidden = !items.length;
  };
  const row = (at) => {
    const item = make("li", at === picked ? "chosen" : ""), half = data.reason[at] < 0;
    const [rule, why, colour] = half ? ["", "", 0] : data.reasons[data.reason[at]];
    item.id = `v${at}`;
    item.tabIndex = -1;
    const id = data.ids[at], cut = id.lastIndexOf("/") + 1, name = make("span", "code");
    name.append(make("span", "front", id.slice(0, cut)), id.slice(cut));
    item.append(make("span", `swatch ${half ? "b-half" : `b-r${colour}`}`), name);
    const numbers = [];
    if (data.drift[at] !== null) numbers.push(`rel_l2 ${figure(data.drift[at])}`);
    if (data.smallest[at] !== null) numbers.push(`${figure(data.smallest[at])} to ${figure(data.largest[at])}`);
    else if (data.largest[at] !== null) numbers.push(`reaches ${figure(data.largest[at])}`);
    const side = make("span", "numbers");
    side.append(...numbers.map((text) => make("span", "", text)));
    item.append(side);
    const scope = data.scopes[data.scope[at]].slice(path.length).join("/");
    const about = make("span", "about", [data.ops[data.op[at]], scope && `in ${scope}`].filter(Boolean).join(" "));
    about.append(half ? " · half" : ` · FP32${rule ? ` by ${rule}: ${why}` : ""}`);
    if (!half && data.culprits[at] && data.culprits[at] !== `${data.ops[data.op[at]]} ${data.nodes[at]}`)
      about.append(`, because of ${data.culprits[at]}`);
    if (data.verdicts[at]) about.append(" · ", make("span", "bad", data.verdicts[at]));
    item.append(about);
    return item;
  };
  const draw = () => {
    const found = matches(), top = deepest(all, []);
    if (path.length < top.length) path = top;
    /* What is searched for may lie outside the module that is shown. */
    if (found.length && !found.some((at) => within(at, path))) path = top;
    const inside = found.filter((at) => within(at, path));
    const key = $("order").value, rows = key ? [...inside].sort((a, b) => rank(data[key][b]) - rank(data[key][a])) : inside;
    /* The values of a module lie inside its modules, unless something is searched for. */
    const searching = key || ["words", "held", "reason", "operator"].some((id) => $(id).value);
    const direct = searching ? rows : rows.filter((at) => data.scopes[data.scope[at]].length === path.length);
    const crumbs = [crumb("whole network", top, path.length === top.length)];
    for (let depth = top.length + 1; depth <= path.length; depth += 1)
      crumbs.push(crumb(path[depth - 1], path.slice(0, depth), depth === path.length));
    $("path").replaceChildren(...crumbs);
    const kept = inside.filter((at) => data.reason[at] >= 0).length;
    $("count").textContent = `${whole(inside.length)} of ${whole(count)} values, ${whole(kept)} in FP32`;
    modules(inside);
    const listed = direct.slice(0, shown);
    $("values").replaceChildren(...listed.map(row));
    $("values").hidden = !listed.length;
    $("further").hidden = direct.length <= shown;
    $("further").textContent = `Show ${whole(Math.min(PAGE, direct.length - shown))} more of ${whole(direct.length)}`;
  };
  const clear = () => { for (const field of $("filters").elements) if (field.id) field.value = ""; };
  const point = () => {
    const found = /^#v(\d+)$/.exec(location.hash), at = found ? Number(found[1]) : -1;
    if (at < 0 || at >= count) return;
    clear();
    path = data.scopes[data.scope[at]];
    picked = at;
    const beside = all.filter((other) => within(other, path) && data.scopes[data.scope[other]].length === path.length);
    shown = Math.max(PAGE, beside.indexOf(at) + 1);
    draw();
    $(`v${at}`).focus({ preventScroll: true });
    $(`v${at}`).scrollIntoView({ block: "center" });
  };
  $("map").hidden = false;
  $("count").tabIndex = -1;
  $("filters").addEventListener("input", () => { shown = PAGE; picked = -1; draw(); });
  $("filters").addEventListener("reset", (event) => { event.preventDefault(); clear(); go([], false); });
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("further").addEventListener("click", () => {
    const first = shown;
    shown += PAGE;
    draw();
    $("values").children[first].focus();
  });
  for (const button of document.querySelectorAll("[data-rule]"))
    button.addEventListener("click", () => {
      clear();
      $("reason").value = button.dataset.rule;
      go([], true);
      $("map-title").scrollIntoView();
    });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#v']");
    if (link && link.getAttribute("href") === location.hash) point();
  });
  addEventListener("hashchange", point);
  draw();
  point();
})();
