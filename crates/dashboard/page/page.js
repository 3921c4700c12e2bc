// Starts the page: listens to the server, draws when something changed, and heeds what a person asks for.

import { STATES, change, fleet, whole } from "./model.js";
import { draw, sentence, step, view } from "./draw.js";

const $ = selector => document.querySelector(selector);
const SPOKEN = 15_000, AGAIN = 3_000;
let drawn = 0, spoken = 0;

function source(text, bad) {
  const place = $("#source");
  if (place.textContent !== text) place.textContent = text;
  place.className = bad ? "bad" : "";
}

/** At most once a frame, however fast changes come; while nobody looks, not at all. */
function soon() {
  if (drawn) return;
  drawn = requestAnimationFrame(() => {
    drawn = 0;
    const said = draw();
    if (!said) return;
    source(said.by, said.old);
    if (!document.body.dataset.drawn) performance.mark("drawn");
    $("#main").removeAttribute("aria-busy");
    document.body.dataset.drawn = "yes";
    const now = Date.now(), text = sentence();
    if (now - spoken > SPOKEN && $("#summary").textContent !== text) {
      spoken = now;
      $("#summary").textContent = text;
    }
  });
}

function listen() {
  const events = new EventSource("events");
  const on = (name, act) => events.addEventListener(name, event => { act(JSON.parse(event.data)); soon(); });
  on("whole", whole);
  on("change", change);
  on("calendar", calendar => { fleet.calendar = calendar; });
  let away = false;
  events.addEventListener("away", event => { away = true; source(`${JSON.parse(event.data).message}. Trying again…`, true); });
  events.onopen = () => { away = false; };
  events.onerror = () => {
    if (fleet.ready && !away) source("The connection is lost: what is shown is old. Trying again…", true);
    // A server that refused is not asked again by the browser itself.
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, AGAIN);
  };
}

function narrow(more) {
  Object.assign(view, { shown: step }, more);
  soon();
}

$("#state").append(...Object.entries(STATES).map(([state, name]) => new Option(name, state)));
$("#policy").addEventListener("change", event => narrow({ policy: event.target.value }));
$("#state").addEventListener("change", event => narrow({ state: event.target.value }));
$("#text").addEventListener("input", event => narrow({ text: event.target.value }));
$("#filter").addEventListener("submit", event => event.preventDefault());
$("#filter").addEventListener("reset", () => narrow({ text: "", state: "", reason: "" }));
$("#further").addEventListener("click", () => { view.shown += step; soon(); });
$("#waiting").addEventListener("click", event => {
  const reason = event.target.dataset?.reason;
  if (!reason) return;
  $("#filter").reset();
  narrow({ text: "", state: "", reason });
  $("#nodes-title").focus();
  $("#nodes").scrollIntoView();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", soon);
addEventListener("resize", soon);
// Spans grow though nothing changes.
setInterval(soon, 15_000);
listen();
