// Draws what follows from the model. Only what differs is touched: whoever reads, selects or stands in a row with the
// keyboard is not thrown out of it. Text is set as text, never as markup.

import { STATES, count, countStates, exposure, fleet, history, moving, nodesOf, notices, object, wait, waiting, zones } from "./model.js";

const $ = selector => document.querySelector(selector);
const MOVING = 50, HISTORY = 40, STEP = 100;
const moment = new Intl.DateTimeFormat(undefined, { weekday: "short", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
export const view = { policy: "", text: "", state: "", reason: "", shown: STEP };

function span(from, to) {
  let rest = Math.max(0, Math.round((Date.parse(to) - Date.parse(from)) / 1000));
  const parts = [];
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "m"], [1, "s"]]) {
    if (rest >= size && parts.length < 2) { parts.push(Math.floor(rest / size) + unit); rest %= size; }
    else if (parts.length) break;
  }
  return parts.join("") || "0s";
}

/** A cell's content: text, a time, a state with its colour, or a button. */
const at = (iso, more = "") => iso ? { time: iso, text: moment.format(new Date(iso)) + more } : "";
const does = state => ({ dot: state, text: STATES[state] ?? state });

function fill(cell, content) {
  const plain = typeof content === "string" || typeof content === "number";
  const key = plain ? String(content) : JSON.stringify(content);
  if (cell.known === key) return;
  cell.known = key;
  if (plain) { cell.textContent = key; return; }
  const parts = [];
  if (content.dot) {
    const dot = document.createElement("span");
    dot.className = `dot ${content.dot}`;
    parts.push(dot, content.text);
  } else if (content.time) {
    const time = document.createElement("time");
    time.dateTime = content.time;
    time.textContent = content.text;
    parts.push(time);
  } else if (content.button) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = content.button;
    if (content.label) button.setAttribute("aria-label", content.label);
    button.dataset.reason = content.reason;
    parts.push(button);
  }
  cell.replaceChildren(...parts);
}

/** Makes the rows of a table equal to `items`: each by its key, its cells by `cells`, the first as its heading. */
function rows(body, items, key, classes, cells) {
  const known = new Map([...body.children].map(row => [row.dataset.key, row]));
  const seen = new Set();
  let before = null;
  for (const item of items) {
    let name = key(item);
    while (seen.has(name)) name += "'";
    seen.add(name);
    let row = known.get(name);
    known.delete(name);
    if (!row) {
      row = document.createElement("tr");
      row.dataset.key = name;
    }
    const contents = cells(item);
    while (row.children.length > contents.length) row.lastChild.remove();
    contents.forEach((content, index) => {
      let cell = row.children[index];
      if (!cell) {
        cell = document.createElement(index === 0 ? "th" : "td");
        if (index === 0) cell.scope = "row";
        cell.className = classes[Math.min(index, classes.length - 1)];
        row.append(cell);
      }
      fill(cell, content);
    });
    const next = before ? before.nextSibling : body.firstChild;
    if (row !== next) body.insertBefore(row, next);
    before = row;
  }
  for (const row of known.values()) row.remove();
}

function section(id, some) {
  const place = $(`#${id}`);
  place.querySelector(".empty").hidden = some;
  const wide = place.querySelector(".wide");
  if (wide) wide.hidden = !some;
  return place;
}

const text = (element, value) => { if (element.textContent !== value) element.textContent = value; };

function drawNotices(now) {
  const list = notices(now), place = $("#notices"), ul = place.querySelector("ul");
  place.hidden = list.length === 0;
  while (ul.children.length > list.length) ul.lastChild.remove();
  list.forEach((one, index) => {
    const li = ul.children[index] ?? ul.appendChild(document.createElement("li"));
    li.className = one.bad ? "bad" : "";
    text(li, one.text + (one.until ? `, until ${moment.format(new Date(one.until))} (${span(now, one.until)} left)` : ""));
  });
}

function drawPolicies(now) {
  const policies = fleet.head.policies, place = section("policies", policies.length > 0).querySelector(".cards");
  const known = new Map([...place.children].map(card => [card.dataset.key, card]));
  for (const policy of policies) {
    let card = known.get(policy.name);
    known.delete(policy.name);
    if (!card) {
      card = document.createElement("article");
      card.dataset.key = policy.name;
      card.append(document.createElement("h3"), document.createElement("progress"), document.createElement("dl"));
      place.append(card);
    }
    const [heading, progress, list] = card.children, status = policy.status, counts = status.counts;
    const target = status.target?.version ?? "no release";
    text(heading, `${policy.name}  ${status.previous && counts.updated < counts.nodes ? `${status.previous.version} → ` : ""}${target}`);
    progress.max = Math.max(1, counts.nodes);
    progress.value = counts.updated;
    progress.setAttribute("aria-label", `${policy.name}: ${counts.updated} of ${counts.nodes} nodes are up to date`);
    const facts = [["Up to date", `${counts.updated} of ${counts.nodes}`]];
    if (status.wave) facts.push(["Wave", `${status.wave.index} of ${status.wave.of}, ${status.wave.name} (${status.wave.done} of ${status.wave.nodes})`]);
    if (status.wave?.soakUntil) facts.push(["Soaks until", moment.format(new Date(status.wave.soakUntil))]);
    if (policy.maxUnavailable !== undefined) facts.push(["Unavailable", `${counts.unavailable} of at most ${policy.maxUnavailable}`]);
    if (status.window?.open) facts.push(["Window", status.window.end ? `open, closes ${moment.format(new Date(status.window.end))} (in ${span(now, status.window.end)})` : "open"]);
    else if (status.window) facts.push(["Window", `opens ${moment.format(new Date(status.window.start))} (in ${span(now, status.window.start)})`]);
    const foreseen = fleet.calendar?.policies.find(one => one.name === policy.name);
    if (foreseen?.doneAt && counts.updated < counts.nodes) facts.push(["Forecast", `done ${moment.format(new Date(foreseen.doneAt))}`]);
    if (status.waitsFor) facts.push(["Waits for", `${status.waitsFor.reason}${status.waitsFor.message ? `: ${status.waitsFor.message}` : ""}`]);
    const open = exposure(policy, nodesOf(policy.name));
    if (open?.behind) facts.push(["Exposed", `${count(open.behind, "node")} without ${target} (severity ${open.severity}), published ${span(open.since, now)} ago`]);
    while (list.children.length > 2 * facts.length) list.lastChild.remove();
    facts.forEach(([name, value], index) => {
      const dt = list.children[2 * index] ?? list.appendChild(document.createElement("dt"));
      const dd = list.children[2 * index + 1] ?? list.appendChild(document.createElement("dd"));
      text(dt, name);
      text(dd, value);
    });
  }
  for (const card of known.values()) card.remove();
  const select = $("#policy"), names = ["", ...policies.map(policy => policy.name)];
  if ([...select.options].map(option => option.value).join("\n") !== names.join("\n")) {
    select.replaceChildren(...names.map(name => new Option(name || "every policy", name)));
    if (!names.includes(view.policy)) view.policy = "";
    select.value = view.policy;
  }
}

function drawFleet(nodes) {
  const place = section("fleet", nodes.length > 0), { rows: list, versions, others } = zones(nodes);
  const heads = ["Zone", ...versions, ...(others.size ? [count(others.size, "other version")] : []), "All"];
  const head = place.querySelector("thead");
  if (head.known !== heads.join("\n")) {
    head.known = heads.join("\n");
    const row = document.createElement("tr");
    row.append(...heads.map((name, index) => {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.className = index ? "number" : "";
      cell.textContent = name;
      return cell;
    }));
    head.replaceChildren(row);
    place.querySelector("tbody").replaceChildren();
  }
  rows(place.querySelector("tbody"), list, row => row.zone, ["name", "number"], row => [
    row.zone, ...versions.map(version => row.versions.get(version) ?? 0),
    ...(others.size ? [[...others].reduce((sum, version) => sum + (row.versions.get(version) ?? 0), 0)] : []), row.nodes.length,
  ]);
  const legend = $("#legend"), counts = [...countStates(nodes)].filter(([, number]) => number > 0);
  while (legend.children.length > counts.length) legend.lastChild.remove();
  counts.forEach(([state, number], index) => {
    const item = legend.children[index] ?? legend.appendChild(document.createElement("li"));
    fill(item, { dot: state, text: `${number} ${STATES[state] ?? state}` });
  });
  drawMap(list);
}

const order = Object.fromEntries(Object.keys(STATES).map((state, index) => [state, index]));

/** One square for each node, zone by zone, what is wrong first. The table and the legend say the same in words. */
function drawMap(list) {
  const map = $("#map"), style = getComputedStyle(document.documentElement);
  const total = list.reduce((sum, row) => sum + row.nodes.length, 0), size = total > 1500 ? 8 : 12, scale = window.devicePixelRatio || 1;
  const colour = new Map(Object.keys(STATES).map(state => [state, style.getPropertyValue(`--${state.toLowerCase()}`)]));
  const key = [map.clientWidth, scale, ...colour.values()].join();
  while (map.children.length > 2 * list.length) map.lastChild.remove();
  list.forEach((row, index) => {
    const heading = map.children[2 * index] ?? map.appendChild(document.createElement("h3"));
    const canvas = map.children[2 * index + 1] ?? map.appendChild(document.createElement("canvas"));
    text(heading, row.zone);
    const nodes = [...row.nodes].sort((a, b) => order[a.state] - order[b.state]);
    const states = key + nodes.map(node => node.state[0] + node.state[1]).join("");
    if (canvas.known === states) return;
    canvas.known = states;
    const width = map.clientWidth || 800, columns = Math.max(1, Math.floor(width / size)), lines = Math.ceil(nodes.length / columns);
    canvas.width = width * scale;
    canvas.height = lines * size * scale;
    canvas.style.height = `${lines * size}px`;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    nodes.forEach((node, place) => {
      pen.fillStyle = colour.get(node.state) ?? colour.get("Unknown");
      pen.fillRect((place % columns) * size, Math.floor(place / columns) * size, size - 2, size - 2);
    });
  });
}

// The reason, where it is another word than the state.
const because = node => wait(node).reason === node.state ? "" : wait(node).reason;

function drawMoving(nodes, now) {
  const list = moving(nodes), place = section("moving", list.length > 0);
  const far = node => node.drain && node.state === "Draining" ? `${node.drain.gone} of ${node.drain.pods} pods gone`
    : node.state === "Staging" ? `${node.percent} %` : because(node);
  rows(place.querySelector("tbody"), list.slice(0, MOVING), node => node.name, ["name", "name", "name", "name", "name", ""], node => {
    const why = wait(node);
    return [node.name, does(node.state), far(node), node.since ? at(node.since, ` (${span(node.since, now)})`) : "", at(why.until), object(why)];
  });
  text(place.querySelector(".more"), list.length > MOVING ? `and ${list.length - MOVING} more: choose what they do under “Nodes”` : "");
}

function drawWaiting(nodes) {
  const list = waiting(nodes), place = section("waiting", list.length > 0);
  rows(place.querySelector("tbody"), list, row => row.reason, ["number", "name", "says", "", "name", "name"], row => [
    row.count, row.reason, row.message, row.objects.slice(0, 3).join(", ") + (row.objects.length > 3 ? ` and ${row.objects.length - 3} more` : ""),
    at(row.until), { button: "Show", label: `Show the nodes that wait for ${row.reason}`, reason: row.reason },
  ]);
}

function drawCalendar() {
  const calendar = fleet.calendar;
  const list = (calendar?.policies ?? []).flatMap(policy => policy.windows.map(window => ({ policy, window })));
  const place = section("calendar", list.length > 0);
  const always = (calendar?.policies ?? []).filter(policy => policy.always).map(policy => policy.name);
  text(place.querySelector(".empty"), !calendar ? "Not computed yet." : "No policy has a maintenance window ahead.");
  rows(place.querySelector("tbody"), list, ({ policy, window }) => `${policy.name} ${window.start}`, ["name", "name", "name", "name", "number"],
    ({ policy, window }) => [policy.name, at(window.start), window.end ? at(window.end) : "no end", window.inItsZone, policy.foreseen ? window.nodes : "–"]);
  const notes = [];
  if (always.length) notes.push(`Without windows, always open: ${always.join(", ")}.`);
  if (calendar?.note) notes.push(calendar.note);
  if (calendar) notes.push(`Computed ${moment.format(new Date(calendar.madeAt))}.`);
  text(place.querySelector(".more"), notes.join(" "));
}

function drawHistory(now) {
  const list = history(now), place = section("history", list.length > 0);
  rows(place.querySelector("tbody"), list.slice(0, HISTORY), one => `${one.at} ${one.policy} ${one.what}`, ["name", "name", "", "", "", "says"],
    one => [at(one.at), one.policy, one.what, one.result, one.by, one.reason]);
  text(place.querySelector(".more"), list.length > HISTORY ? `and ${list.length - HISTORY} older: bascule history` : "");
}

function drawNodes(nodes) {
  const wanted = view.text.toLowerCase();
  const found = nodes.filter(node => {
    const why = wait(node);
    return (!view.state || node.state === view.state) && (!view.reason || why.reason === view.reason)
      && (!wanted || [node.name, node.zone, node.booted, node.staged, why.reason].some(part => part?.toLowerCase().includes(wanted)));
  });
  const place = $("#nodes");
  place.querySelector(".wide").hidden = found.length === 0;
  rows(place.querySelector("tbody"), found.slice(0, view.shown), node => node.name, ["name", "name", "name", "name", "name", "name", "name", "name", "says"], node => {
    const why = wait(node);
    return [node.name, node.zone ?? "", node.policy ?? "none", node.booted ?? "", node.staged ?? "", does(node.state), because(node), at(why.until), why.message ?? ""];
  });
  const limits = [view.reason && `that wait for ${view.reason}`, view.policy && `of ${view.policy}`].filter(Boolean).join(" ");
  const shown = Math.min(found.length, view.shown);
  text($("#found"), `${count(found.length, "node")}${limits ? ` ${limits}` : ""}${shown < found.length ? `, the first ${shown} are shown` : ""}`);
  $("#further").hidden = shown >= found.length;
}

export function draw() {
  if (!fleet.ready) return;
  const now = new Date().toISOString();
  drawNotices(now);
  drawPolicies(now);
  const nodes = nodesOf(view.policy);
  drawFleet(nodes);
  drawMoving(nodes, now);
  drawWaiting(nodes);
  drawCalendar();
  drawHistory(now);
  drawNodes(nodes);
  const head = fleet.head, old = (Date.parse(now) - Date.parse(fleet.plannedAt)) / 1000;
  const by = head.plannedBy ? `Live from ${head.plannedBy}` : "From the objects";
  return { by: `${by}, as of ${moment.format(new Date(fleet.plannedAt))}${old > 90 ? ` (${span(fleet.plannedAt, now)} ago)` : ""}`, old: old > 90 };
}

/** A sentence for those who listen. */
export function sentence() {
  const counts = countStates(fleet.nodes.values());
  return [...counts].filter(([, number]) => number > 0).map(([state, number]) => `${number} ${STATES[state] ?? state}`).join(", ");
}

export const step = STEP;
