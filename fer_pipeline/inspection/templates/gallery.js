"use strict";
// The pages of a gallery: what `inspection/gallery.py` wrote is loaded by script elements, which work from the disk too.
// The address behind # is the state: a view is drawn from it alone, and every control changes it.

const NONE = 0xffff;
const VERDICTS = ["none", "right", "wrong", "other"];
const MARKS = ["", "✓", "✗", "≠"];
const WITHDRAWN = "withdrawn"; // in CSV: what this person said before is taken back
const CSV_HEADER = ["face_id", "set", "content", "verdict", "label", "who", "when", "sample"];
const DETAILS_KEPT = 60; // files with crops that stay in memory
const LONGEST_POST = 2 ** 25;
const $ = (id) => document.getElementById(id);

const gallery = {
  values: new Map(),
  loads: new Map(),
  take(name, value) { this.values.set(name, value); },
  load(name) {
    if (!this.loads.has(name)) {
      this.loads.set(name, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = `${name}.js`;
        script.onload = () => { script.remove(); resolve(this.values.get(name)); };
        script.onerror = () => { script.remove(); this.forget(name); reject(new Error(`${name}.js of this gallery cannot be read; make it again`)); };
        document.head.append(script);
      }));
    }
    return this.loads.get(name);
  },
  forget(name) { this.loads.delete(name); this.values.delete(name); },
};

// An element with properties and children; texts stay texts.
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const { format: count } = new Intl.NumberFormat("en"); // toLocaleString would make one for each number
const decimal = (value) => (Number.isFinite(value) ? value.toFixed(3) : "–");
const say = (text) => { $("status").textContent = text; };

function bytesOf(text) {
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
}

// ---- storage: what the browser denies, or has no place for, is kept in memory until the page is left ------------------

const NAME = "fer_pipeline name";

function storage(name) {
  const memory = new Map(), attempt = (action, otherwise) => { try { return action(window[name]); } catch { return otherwise; } };
  return { // null or false: the browser has nothing, or takes nothing
    get: (key) => memory.get(key) ?? attempt((kept) => kept.getItem(key), null),
    set(key, value) {
      memory.set(key, value);
      return attempt((kept) => { kept.setItem(key, value); return memory.delete(key); }, false);
    },
    remove(key) {
      memory.delete(key);
      return attempt((kept) => { kept.removeItem(key); return true; }, false);
    },
    entries: () => attempt((kept) => Object.entries(kept), null),
  };
}

const local = storage("localStorage"), session = storage("sessionStorage");

// ---- faces: each has a number over all lists, under which its values stand in columns --------------------------------

let index, lists, byKey;
const column = {};
const verdicts = new Map(); // by picture and then by person: what was judged, here or before
let verdictOf, verdictLabel; // of each face, as a place in VERDICTS and in the names

function setUp() {
  let start = 0;
  lists = index.lists.map((list) => { const one = { ...list, start, ready: false }; start += list.count; return one; });
  byKey = new Map(lists.map((list) => [list.key, list]));
  for (const [name, kind] of Object.entries(index.columns)) {
    column[name] = kind === "<f4" ? new Float32Array(start).fill(NaN) : kind === "<u4" ? new Uint32Array(start) : new Uint16Array(start).fill(NONE);
  }
  verdictOf = new Uint8Array(start);
  verdictLabel = new Uint16Array(start).fill(NONE);
}

async function loadRows(list) {
  const columns = await gallery.load(`${list.key}/rows`);
  if (list.ready) return;
  for (const [name, text] of Object.entries(columns)) {
    const array = column[name];
    array.set(new array.constructor(bytesOf(text).buffer), list.start);
  }
  list.ready = true;
}

async function loadNames(list) {
  if (list.names) return;
  const names = await gallery.load(`${list.key}/names`);
  if (list.names) return;
  const bytes = bytesOf(names.content);
  const digits = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0"));
  names.content = names.face_id.map((_, row) => digits.slice(16 * row, 16 * row + 16).join(""));
  list.names = names;
  for (let id = list.start; id < list.start + list.count; id++) readVerdict(list, id);
}

const listOf = (id) => lists.find((list) => id < list.start + list.count);
const isFace = (id) => (listOf(id)?.kind ?? "anchor") !== "anchor";
const keyOf = (list, id) => [index.pools[column.pool[id]], list.names.face_id[id - list.start], list.names.content[id - list.start]].join("\0");

function readVerdict(list, id) {
  const rows = [...(verdicts.get(keyOf(list, id))?.values() ?? [])].filter((row) => row.verdict !== WITHDRAWN);
  const row = rows.reduce((newest, one) => (newest && newest.when > one.when ? newest : one), null);
  verdictOf[id] = row ? VERDICTS.indexOf(row.verdict) : 0;
  verdictLabel[id] = row && row.label ? index.names.indexOf(row.label) : NONE;
}

// ---- verdicts: kept in the browser until they are downloaded or saved -------------------------------------------------

// Each has an entry of its own, whose key ends in picture and person, so that tabs do not overwrite what others keep.
const STORED = () => `fer_pipeline verdicts ${index.project} `;
let token = null, later;

// The classes that `data/review.csv` takes are those of the project that serves these pages, else of the newer revision.
const taken = () => gallery.values.get("labels") ?? index.labels;
const offered = () => index.labels.filter((name) => taken().includes(name));

function readVerdicts(rows) {
  for (const row of rows) addVerdict(Object.fromEntries(CSV_HEADER.map((name, i) => [name, row[i] ?? ""])));
  const entries = local.entries();
  let unread = entries === null;
  for (const [key, text] of (entries ?? []).filter(([key]) => key.startsWith(STORED())).sort()) {
    try {
      if (!addVerdict(readStored(key, text))) local.remove(key); // it is in the file
    } catch { unread = true; }
  }
  if (unread) say("What was judged here before cannot be read.");
}

function readStored(key, text) {
  const [set, face_id, content, who] = JSON.parse(key.slice(STORED().length));
  return { ...JSON.parse(text), set, face_id, content, who, own: true };
}

// What another tab judged, took back or saved, which alone the file can tell.
function takeStored({ key, oldValue, newValue }) {
  if (!key?.startsWith(STORED())) return;
  const row = readStored(key, newValue ?? oldValue), people = peopleOf([row.set, row.face_id, row.content].join("\0")), known = people.get(row.who);
  if (newValue !== null) addVerdict(row);
  else if (known?.own && known.when > row.when) keepVerdicts([known]);
  else if (known?.own) people.delete(row.who);
  clearTimeout(later);
  later = setTimeout(async () => {
    gallery.forget("verdicts");
    readVerdicts(await gallery.load("verdicts").catch(() => []));
    for (const list of lists.filter((one) => one.ready)) {
      await loadNames(list);
      for (let id = list.start; id < list.start + list.count; id++) readVerdict(list, id);
    }
    drawUnsaved();
    drawJudged();
  }, 200);
}

const peopleOf = (key) => verdicts.get(key) ?? verdicts.set(key, new Map()).get(key);

// `own` rows are still to be saved; what was `given` away by this browser, or came from the file, may stand there.
function addVerdict(row) {
  const people = peopleOf([row.set, row.face_id, row.content].join("\0")), known = people.get(row.who);
  if (known && (known.when > row.when || (known.when === row.when && !known.own))) return false;
  people.set(row.who, { ...row, given: !row.own || row.given || Boolean(known?.given) });
  return true;
}

const ownVerdicts = () => [...verdicts.values()].flatMap((people) => [...people.values()]).filter((row) => row.own);

// What can be merged, and a line on the rest: one class that the project has no more would have all of it refused.
function give() {
  const can = (row) => !row.label || taken().includes(row.label), own = ownVerdicts(), rows = own.filter(can), rest = own.filter((row) => !can(row));
  for (const row of rows) row.given = true;
  const classes = [...new Set(rest.map((row) => row.label))].join(", ");
  return { rows, note: rest.length ? `; ${count(rest.length)} on ${classes}, no class now, only here` : "" };
}

function keepVerdicts(rows) {
  let all = true;
  for (const { set, face_id, content, who } of rows) {
    const key = STORED() + JSON.stringify([set, face_id, content, who]), now = verdicts.get([set, face_id, content].join("\0"))?.get(who);
    const kept = now?.own ? local.set(key, JSON.stringify(now, ["verdict", "label", "when", "sample", "given"])) : local.remove(key);
    all &&= kept;
  }
  if (!all) say("The browser keeps no more verdicts: download them before you leave this page.");
  drawUnsaved();
}

function askName() {
  const known = local.get(NAME);
  if (known) return Promise.resolve(known);
  return new Promise((resolve) => {
    $("who").showModal();
    $("who").querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      const name = $("name").value.trim();
      if (!name) return;
      local.set(NAME, name);
      $("who").close();
      resolve(name);
    };
    $("who").onclose = () => resolve(local.get(NAME));
  });
}

// Whether faces were judged. `label`: the class that other faces show, a place in the names or NONE; null takes a verdict back.
async function mark(faces, verdict, label = NONE) {
  const done = new Map(), changed = [], add = (what) => done.set(what, (done.get(what) ?? 0) + 1);
  const told = () => [...done].map(([what, number]) => `${count(number)} ${number === 1 ? "face" : "faces"} ${what}`).join(", ");
  const about = (id) => { // the verdict, and the class that it names
    const is = verdict === "other" && label === column.label[id] ? "right" : verdict;
    return [is, verdict === null ? "" : index.names[is === "other" ? label : column.label[id]] ?? ""];
  };
  for (const list of new Set(faces.filter(isFace).map(listOf))) await Promise.all([loadRows(list), loadNames(list)]);
  const ids = faces.filter(isFace).filter((id) => {
    const name = about(id)[1], may = !name || taken().includes(name);
    if (!may) add(`not judged: ${name} is no class now`);
    return may;
  });
  if (done.size) say(told());
  const who = ids.length ? await askName() : null;
  if (!who) return false;
  const when = new Date().toISOString();
  for (const id of ids) {
    const list = listOf(id), people = peopleOf(keyOf(list, id)), row = id - list.start;
    for (const [name, one] of people) if (one.own && !one.given) { people.delete(name); changed.push(one); }
    const known = people.get(who);
    let what = "taken back";
    if (verdict === null) {
      if (known) people.set(who, { ...known, verdict: WITHDRAWN, label: "", when, sample: "", own: true });
      if ([...people].some(([name, one]) => name !== who && one.verdict !== WITHDRAWN)) what = "taken back (what others said stays)";
    } else {
      const [is, name] = about(id);
      what = `${is}: ${name || "none of the classes"}`;
      people.set(who, {
        face_id: list.names.face_id[row], set: index.pools[column.pool[id]], content: list.names.content[row], verdict: is, label: name, who, when,
        sample: list.names.sample?.[row] ?? "", own: true, given: Boolean(known),
      });
    }
    if (people.has(who)) changed.push(people.get(who));
    add(what);
    for (const other of lists) { // a face may stand in a class and among the chosen ones
      if (other !== list && !(other.names && (other.kind === "chosen" || list.kind === "chosen"))) continue;
      if (other === list) readVerdict(list, id);
      else other.names.face_id.forEach((name, i) => { if (name === list.names.face_id[row]) readVerdict(other, other.start + i); });
    }
  }
  say(told());
  keepVerdicts(changed); // which says where it cannot
  drawJudged();
  return true;
}

function drawJudged() {
  panes.forEach((pane) => pane.draw());
  countAgain();
  if (openFace !== null) drawFace();
}

function csvText(rows) {
  const cell = (text) => (/[",\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  return [CSV_HEADER, ...rows.map((row) => CSV_HEADER.map((name) => row[name] ?? ""))].map((cells) => cells.map(cell).join(",") + "\n").join("");
}

function download() {
  const { rows, note } = give(), link = make("a", { href: URL.createObjectURL(new Blob([csvText(rows)], { type: "text/csv" })), download: "review.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  keepVerdicts(rows);
  say(`Downloaded; merge it by: python -m fer_pipeline mined review review.csv${note}`);
}

async function save() {
  const { rows, note } = give(), body = csvText(rows);
  if (body.length > LONGEST_POST) return say("These are too many verdicts to save at once; download them.");
  try {
    const answer = await fetch("review", { method: "POST", headers: { "X-Token": token, "Content-Type": "text/csv" }, body });
    const text = (await answer.text()).trim();
    if (!answer.ok) return say(`Not saved: ${text || answer.statusText}`);
    for (const row of rows) row.own = false;
    keepVerdicts(rows);
    say(text + note);
  } catch (error) {
    say(`Not saved: ${error.message}; is mined view still running?`);
  }
}

function drawUnsaved() {
  const own = ownVerdicts(), back = own.filter((row) => row.verdict === WITHDRAWN).length, number = own.length - back;
  const parts = [number ? `${count(number)} ${number === 1 ? "verdict" : "verdicts"}` : "", back ? `${count(back)} taken back` : ""];
  const buttons = [make("button", { id: "download", onclick: download }, "Download CSV")];
  if (token) buttons.unshift(make("button", { id: "save", className: "main", onclick: save }, "Save"));
  const who = local.get(NAME);
  const rename = who ? make("button", { className: "plain", title: "Change the name", onclick: () => { local.remove(NAME); askName().then(drawUnsaved); } }, `by ${who}`) : null;
  $("unsaved").replaceChildren(...(own.length ? [`${parts.filter(Boolean).join(" and ")} only in this browser`, rename, ...buttons].filter(Boolean) : []));
}

// ---- the address -------------------------------------------------------------------------------------------------------

const DIMENSIONS = {
  class: { name: "Class", of: (id) => column.label[id], key: (value) => index.names[value], shown: () => !state.class },
  pool: { name: "Pool", of: (id) => column.pool[id], key: (value) => index.pools[value], shown: (counts) => counts.size > 1 },
  status: {
    name: () => (index.compare ? `Since ${index.compare.title}` : "Since another revision"),
    of: (id) => column.status[id],
    key: (value) => index.status[value] ?? (index.compare ? "not mined" : "not compared"),
    shown: (counts) => counts.size > 1,
  },
  truth: {
    name: "Truth",
    of: (id) => (column.truth[id] === NONE ? NONE : column.truth[id] === column.label[id] ? -1 : column.truth[id]),
    key: (value) => (value === -1 ? "right" : value === NONE ? "not known" : `is ${index.names[value]}`),
    shown: (counts) => counts.size > 1 || !counts.has(NONE),
  },
  verdict: { name: "Verdict", of: (id) => verdictOf[id], key: (value) => VERDICTS[value], shown: () => true },
};
let state = {};

function readAddress() {
  const words = new URLSearchParams(location.hash.slice(1));
  if (words.has("token")) { // from the address that `mined view` printed; no link that is sent on may hold it
    session.set("token", words.get("token"));
    words.delete("token");
    history.replaceState(null, "", `#${words}`);
  }
  token = location.protocol === "file:" ? null : session.get("token");
  const number = (name) => (words.get(name) === null || words.get(name) === "" || !Number.isFinite(+words.get(name)) ? null : +words.get(name));
  const first = lists.find((list) => list.kind === (index.chosen ? "chosen" : "mined"));
  const wanted = words.get("view") ?? (index.chosen ? "chosen" : "mined");
  const view = (wanted === "compare" && index.compare) || (wanted === "chosen" && index.chosen) ? wanted : "mined";
  return {
    view,
    class: view === "chosen" ? "" : words.has("view") || words.has("class") ? words.get("class") ?? "" : first?.label ?? "",
    order: ["margin", "rank", "cosine"].includes(words.get("order")) ? words.get("order") : "margin",
    rising: words.has("rising"), wall: words.has("wall"), from: number("from"), to: number("to"),
    face: /^\d+(\.[0-9a-f]+)?$/.test(words.get("face")) ? words.get("face") : null, // its number, and what its content begins with
    filters: Object.fromEntries(Object.keys(DIMENSIONS).map((name) => [name, new Set(words.getAll(`only-${name}`))])),
  };
}

function writeAddress(next) {
  const words = new URLSearchParams({ view: next.view });
  if (next.class) words.set("class", next.class);
  if (next.order !== "margin") words.set("order", next.order);
  for (const name of ["rising", "wall"]) if (next[name]) words.set(name, "1");
  for (const [name, values] of Object.entries(next.filters)) for (const value of values) words.append(`only-${name}`, value);
  for (const name of ["from", "to", "face"]) if (next[name] !== null) words.set(name, next[name]);
  return `#${words}`;
}

// A step that one may want to go back from gets an entry of its own in the browser's history.
function go(changes, { step = false } = {}) {
  const address = writeAddress({ ...state, ...changes });
  if (address === location.hash) return;
  if (step) location.hash = address;
  else { history.replaceState(null, "", address); show(); }
}

const noFilters = () => Object.fromEntries(Object.keys(DIMENSIONS).map((name) => [name, new Set()]));

// ---- a view --------------------------------------------------------------------------------------------------------------

let panes = [], active = 0, drawn = "", showing = 0;
const selected = new Set();

const idsOf = (list) => Array.from({ length: list.count }, (_, row) => list.start + row);
const minedOf = (name) => lists.filter((list) => list.kind === "mined" && (!name || list.label === name));

async function collect() {
  if (state.view !== "compare") {
    const wanted = state.view === "chosen" ? [byKey.get("chosen")] : minedOf(state.class);
    await Promise.all(wanted.map(loadRows));
    return { wanted, sides: [{ title: "", ids: wanted.flatMap(idsOf) }] };
  }
  const name = state.class, number = index.names.indexOf(name);
  if (!name) return { wanted: [], sides: [] };
  const away = new Set(index.compare.relabelled.filter(([from]) => from === name).map(([, to]) => to));
  const gone = lists.filter((list) => list.kind === "gone" && list.label === name), here = minedOf(name);
  const others = lists.filter((list) => list.kind === "mined" && away.has(list.label));
  const wanted = [...gone, ...here, ...others];
  await Promise.all(wanted.map(loadRows));
  const relabelled = index.status.indexOf("relabelled"), added = index.status.indexOf("added");
  const left = others.flatMap(idsOf).filter((id) => column.status[id] === relabelled && column.before[id] === number);
  const came = here.flatMap(idsOf).filter((id) => column.status[id] === relabelled || column.status[id] === added);
  return {
    wanted,
    sides: [
      { title: `${name} in ${index.compare.title} alone${left.length ? "; verdicts are on the class after →" : ""}`, ids: [...gone.flatMap(idsOf), ...left], isBefore: true },
      { title: `${name} in ${index.title} alone`, ids: came },
    ],
  };
}

const within = (value, from, to) => (from === null || value >= from) && (to === null || value <= to);

// Splits faces by the filters, and counts for each filter what the others leave.
function filter(ids, tally) {
  const entries = Object.entries(DIMENSIONS).map(([name, one]) => [one.of, state.filters[name], one.key, tally[name]]);
  const { from, to } = state, chosen = [];
  for (const id of ids) {
    let failed = null, failures = 0;
    const margin = column.margin[id];
    if (!within(margin, from, to)) { failures++; failed = "margin"; }
    for (const entry of entries) if (entry[1].size && !entry[1].has(entry[2](entry[0](id)))) { failures++; failed = entry; }
    if (failures > 1) continue;
    if (!failures) chosen.push(id);
    for (const entry of failures ? (failed === "margin" ? [] : [failed]) : entries) {
      const value = entry[0](id);
      entry[3].set(value, (entry[3].get(value) ?? 0) + 1);
    }
    if (Number.isFinite(margin) && (!failures || failed === "margin")) tally.margins.push(margin);
  }
  return chosen;
}

function sort(ids) {
  const values = column[state.order], by = state.order === "rank" ? 1 : -1, sign = state.rising ? -by : by;
  const last = (value) => Number.isNaN(value) || (state.order === "rank" && !value); // a chosen face that was not mined
  return ids.sort((a, b) => last(values[a]) - last(values[b]) || sign * (values[a] - values[b]) || a - b);
}

const placeNow = () => writeAddress({ ...state, face: null });

async function show() {
  state = readAddress();
  const turn = ++showing, place = placeNow();
  try {
    if (place !== drawn) {
      const { wanted, sides } = await collect();
      if (turn !== showing) return;
      drawn = place;
      drawView(sides);
      if (verdicts.size) { // names are needed to know what was judged, and nothing else on this screen waits for them
        const unread = wanted.filter((list) => !list.names);
        await Promise.all(unread.map(loadNames));
        if (unread.length && place === placeNow()) { // a face may have been opened meanwhile
          if (state.filters.verdict.size) drawView(sides);
          drawJudged();
        }
        if (turn !== showing) return;
      }
    }
    openFace = state.face === null ? null : parseInt(state.face, 10);
    if (openFace === null) $("face").close();
    else await drawFace();
  } catch (error) {
    say(error.message);
  }
}

const newTally = () => ({ margins: [], ...Object.fromEntries(Object.keys(DIMENSIONS).map((name) => [name, new Map()])) });

// The counts alone: a face that was just judged stays where it is until the next view.
function countAgain() {
  const tally = newTally();
  panes.forEach((pane) => filter(pane.all, tally));
  drawFilters(tally);
}

function drawView(sides) {
  const tally = newTally();
  $("order").value = state.order;
  for (const id of ["rising", "wall"]) $(id).checked = state[id];
  drawTabs();
  const old = panes;
  panes = sides.map((one) => new Pane(one, sort(filter(one.ids, tally))));
  old.forEach((pane) => pane.end());
  active = Math.min(active, Math.max(panes.length - 1, 0));
  selected.clear();
  $("panes").replaceChildren(...panes.map((pane) => pane.frame));
  const overview = state.view === "compare" && !state.class;
  document.body.classList.toggle("overview", overview);
  $("overview").hidden = !overview;
  $("overview").replaceChildren(...(overview ? drawOverview() : []));
  const shown = panes.reduce((sum, pane) => sum + pane.ids.length, 0), all = sides.reduce((sum, one) => sum + one.ids.length, 0);
  $("shown").textContent = overview ? "" : shown === all ? `${count(all)} faces` : `${count(shown)} of ${count(all)} faces`;
  drawFilters(tally);
  panes.forEach((pane) => pane.draw());
  drawMarking();
  panes[active]?.box.focus({ preventScroll: true });
}

function drawTabs() {
  const tab = (text, number, view, name, current) => make("a", {
    href: writeAddress({ ...state, view, class: name, face: null, from: null, to: null, filters: noFilters() }), className: current ? "current" : "",
  }, text, number === null ? null : make("small", {}, ` ${count(number)}`));
  const mined = minedOf(""), inMined = state.view === "mined";
  const tabs = index.classes.map((name) => {
    const number = minedOf(name)[0]?.count ?? 0, changes = index.compare?.counts.find((row) => row.class === name);
    if (state.view === "compare") return tab(name, changes ? changes.added + changes.removed + changes.relabelled_to + changes.relabelled_from : 0, "compare", name, state.class === name);
    return tab(name, number, "mined", name, inMined && state.class === name);
  });
  const all = mined.reduce((sum, list) => sum + list.count, 0);
  const views = [tab("mined", all, "mined", mined[0]?.label ?? "", inMined)];
  if (index.compare) views.push(tab("compare", null, "compare", "", state.view === "compare"));
  if (index.chosen) views.push(tab(index.chosen, byKey.get("chosen")?.count ?? 0, "chosen", "", state.view === "chosen"));
  if (state.view === "chosen") tabs.length = 0;
  else tabs.unshift(state.view === "compare" ? tab("what changed", null, "compare", "", !state.class) : tab("all classes", all, "mined", "", inMined && !state.class));
  $("tabs").replaceChildren(...(views.length > 1 ? [make("span", { className: "views" }, ...views)] : []), make("span", { className: "classes" }, ...tabs));
  $("tabs").querySelectorAll(".current").forEach((one) => { one.setAttribute("aria-current", "page"); one.parentElement.scrollLeft = one.offsetLeft - one.parentElement.offsetLeft - 40; });
  $("title").replaceChildren(make("strong", {}, "Mined faces"), ` ${index.title}`, ...(index.compare ? [make("small", {}, ` compared with ${index.compare.title}`)] : []));
  document.title = `${[state.class, state.view === "mined" ? "" : state.view].filter(Boolean).join(", ") || "all"}: mined faces of ${index.title}`;
}

function drawFilters(tally) {
  const groups = [];
  for (const [name, one] of Object.entries(DIMENSIONS)) {
    const counts = tally[name], wanted = state.filters[name];
    if (!panes.length || (!wanted.size && (!counts.size || !one.shown(counts)))) continue;
    const keys = new Map([...counts].map(([value, number]) => [one.key(value), number]));
    wanted.forEach((key) => keys.has(key) || keys.set(key, 0));
    const boxes = [...keys].sort((a, b) => b[1] - a[1]).map(([key, number]) => make("label", {},
      make("input", { type: "checkbox", checked: wanted.has(key), onchange: (event) => {
        const values = new Set(wanted);
        if (event.target.checked) values.add(key); else values.delete(key);
        go({ filters: { ...state.filters, [name]: values } });
      } }), make("span", { className: "key" }, key), make("small", {}, count(number))));
    groups.push(make("fieldset", { id: `filter-${name}` }, make("legend", {}, typeof one.name === "function" ? one.name() : one.name), ...boxes));
  }
  if (tally.margins.length || state.from !== null || state.to !== null) groups.unshift(drawMargins(tally.margins));
  const none = Object.values(state.filters).every((values) => !values.size) && state.from === null && state.to === null;
  const clear = make("button", { disabled: none, onclick: () => go({ filters: noFilters(), from: null, to: null }) }, "No filters");
  const close = make("button", { className: "narrow", onclick: () => toggleFilters(false) }, "Show faces");
  $("filters").replaceChildren(...groups, make("p", {}, clear, close));
  $("open-filters").classList.toggle("main", !none);
}

function drawMargins(margins) {
  const low = margins.reduce((least, value) => Math.min(least, value), Infinity), high = margins.reduce((most, value) => Math.max(most, value), -Infinity);
  const digits = Math.min(7, Math.max(3, 3 - Math.floor(Math.log10(high - low || 1)))); // probabilities may all be close to 1
  const width = (high - low) / 20 || 1, round = (value) => +value.toFixed(digits);
  const edges = Array.from({ length: 21 }, (_, i) => round(low + i * width));
  if (edges[0] > low) edges[0] = round(edges[0] - 10 ** -digits);
  if (edges[20] < high) edges[20] = round(edges[20] + 10 ** -digits);
  const bins = edges.slice(1).map((to, i) => margins.reduce((sum, value) => sum + within(value, edges[i], to), 0)); // what a click leaves
  const most = Math.max(...bins);
  const bars = bins.map((number, i) => {
    const from = edges[i], to = edges[i + 1], inside = (state.from === null || to > state.from + 1e-9) && (state.to === null || from < state.to - 1e-9);
    const bar = make("button", { className: inside ? "in" : "", title: `${from.toFixed(digits)} to ${to.toFixed(digits)}: ${count(number)} faces`, onclick: () => go({ from, to }) }, make("i"));
    bar.firstChild.style.height = `${number ? Math.max(4, (100 * number) / most) : 0}%`;
    return bar;
  });
  const input = (name, text) => make("label", {}, text, make("input", { type: "number", step: "any", id: name, value: state[name] ?? "", placeholder: margins.length ? (name === "from" ? low : high).toFixed(digits) : "", onchange: (event) => go({ [name]: event.target.value === "" ? null : +event.target.value }) }));
  return make("fieldset", { id: "filter-margin" }, make("legend", {}, index.rule.replaceAll("_", " ")), make("div", { className: "bars" }, ...(margins.length ? bars : [])), make("div", { className: "range" }, input("from", "from "), input("to", "to ")));
}

function drawOverview() {
  const compare = index.compare, words = ["before", "after", "added", "removed", "relabelled_to", "relabelled_from", "moved", "unchanged"];
  const heads = ["class", compare.title, index.title, "in", "out", "relabelled to", "relabelled from", "moved", "unchanged"];
  const rows = compare.counts.map((row) => make("tr", {}, make("th", { scope: "row" }, make("a", { href: writeAddress({ ...state, class: row.class }) }, row.class)), ...words.map((word) => make("td", {}, count(row[word])))));
  const table = (head, body, kind = "") => make("div", { className: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, ...head.map((text) => make("th", { scope: "col", className: kind }, text)))), make("tbody", {}, ...body)));
  const causes = compare.causes.map((cause) => make("tr", {}, ...["kind", "name", "before", "after", "stages"].map((name) => make("td", { className: "text" }, cause[name] ?? "–"))));
  return [
    make("h2", {}, `From ${compare.title} to ${index.title}`), table(heads, rows), make("h2", {}, "What differs between the two runs"),
    causes.length ? table(["kind", "name", compare.title, index.title, "stages"], causes, "text") : make("p", {}, "Nothing that dvc.lock records: the same settings, code, weights and data."),
    ...index.notes.map((note) => make("p", { className: "warn" }, note)),
  ];
}

// ---- a pane: a long list of tiles, of which those in sight alone exist -----------------------------------------------------

class Pane {
  constructor({ title, ids: all, isBefore = false }, ids) {
    Object.assign(this, { ids, all, isBefore, title, cursor: 0, from: 0, range: [], tiles: new Map(), lastTop: 0 });
    this.space = make("div", { className: "space" });
    this.box = make("div", { className: "box", tabIndex: 0, role: "listbox", "aria-multiselectable": "true", "aria-label": title || "Faces" }, this.space);
    this.frame = make("section", { className: "pane" }, title ? make("h2", {}, title, make("small", {}, ` ${count(ids.length)}`)) : null, this.box);
    if (!ids.length) this.space.append(make("p", { className: "empty" }, "No faces here."));
    this.box.onscroll = () => this.scrolled();
    this.box.onfocus = () => { active = panes.indexOf(this); this.draw(); };
    this.box.onclick = (event) => this.clicked(event);
    this.resized = new ResizeObserver(() => { this.measure(); this.draw(); });
    this.resized.observe(this.box);
  }

  end() { this.resized.disconnect(); }

  measure() {
    const at = this.columns ? Math.round(this.box.scrollTop / this.height) * this.columns : 0;
    const room = this.box.clientWidth - 8, base = state.wall ? 56 : 112, gap = state.wall ? 2 : 8;
    this.columns = Math.max(1, Math.floor((room + gap) / (base + gap)));
    if (!state.wall && room < 330) this.columns = Math.max(2, this.columns);
    this.side = Math.floor((room + gap) / this.columns) - gap;
    this.width = this.side + gap;
    this.height = this.side + (state.wall ? gap : gap + 18);
    this.space.style.height = `${Math.ceil(this.ids.length / this.columns) * this.height + 8}px`;
    this.box.scrollTop = Math.floor(at / this.columns) * this.height;
    this.tiles.forEach((tile) => tile.remove());
    this.tiles.clear();
  }

  scrolled() {
    const moved = Math.abs(this.box.scrollTop - this.lastTop);
    this.lastTop = this.box.scrollTop;
    clearTimeout(this.later);
    // What flies past is not loaded.
    if (moved > 2 * this.box.clientHeight) this.later = setTimeout(() => this.draw(), 80);
    else this.draw();
  }

  draw() {
    if (!this.columns) return;
    const first = Math.max(0, Math.floor(this.box.scrollTop / this.height) - 1) * this.columns;
    const end = Math.min(this.ids.length, (Math.ceil((this.box.scrollTop + this.box.clientHeight) / this.height) + 1) * this.columns);
    for (const [place, tile] of this.tiles) if (place < first || place >= end) { tile.remove(); this.tiles.delete(place); }
    for (let place = first; place < end; place++) {
      if (!this.tiles.has(place)) { const tile = this.makeTile(place); this.tiles.set(place, tile); this.space.append(tile); }
      this.mark(place);
    }
    this.box.setAttribute("aria-activedescendant", this.tiles.get(this.cursor)?.id ?? "");
  }

  makeTile(place) {
    const id = this.ids[place], tile = make("div", { className: "tile", id: `tile-${panes.indexOf(this)}-${id}`, role: "option" }, make("i", { className: "picture" }), make("b"), make("span"));
    tile.dataset.place = place;
    tile.setAttribute("aria-posinset", place + 1);
    tile.setAttribute("aria-setsize", this.ids.length);
    tile.style.transform = `translate(${4 + (place % this.columns) * this.width}px, ${4 + Math.floor(place / this.columns) * this.height}px)`;
    tile.style.width = tile.firstChild.style.height = `${this.side}px`;
    showPicture(tile.firstChild, id, state.wall ? "wall" : "tiles");
    return tile;
  }

  mark(place) {
    const id = this.ids[place], tile = this.tiles.get(place), truth = column.truth[id];
    const value = state.order === "rank" ? (column.rank[id] ? `#${count(column.rank[id])}` : "not mined") : decimal(column[state.order][id]);
    const status = index.status[column.status[id]], isFalse = truth !== NONE && truth !== column.label[id];
    const change = this.isBefore ? (status === "removed" ? "out" : `→ ${index.names[column.label[id]]}`) : status === "relabelled" ? `from ${index.names[column.before[id]]}` : status === "added" ? "in" : "";
    const verdict = verdictOf[id], judged = verdict ? (verdict === 3 ? `≠ ${index.names[verdictLabel[id]] ?? "none"}` : MARKS[verdict]) : "";
    tile.className = `tile ${VERDICTS[verdict]}${isFalse ? " false" : ""}${selected.has(id) ? " selected" : ""}${place === this.cursor && panes[active] === this ? " cursor" : ""}`;
    tile.children[1].textContent = judged;
    tile.children[2].textContent = `${value} ${this.title ? change : state.class ? "" : index.names[column.label[id]]}`.trim();
    tile.setAttribute("aria-selected", selected.has(id));
    tile.setAttribute("aria-label", [index.names[column.label[id]], `${state.order} ${value}`, change, isFalse ? `truly ${index.names[truth]}` : "", judged && `judged ${VERDICTS[verdict]}`].filter(Boolean).join(", "));
    tile.title = state.wall ? tile.getAttribute("aria-label") : isFalse ? `truly ${index.names[truth]}` : "";
  }

  clicked(event) {
    const tile = event.target.closest(".tile");
    if (!tile) return;
    const place = +tile.dataset.place;
    if (event.shiftKey) this.selectRange(place);
    else if (event.ctrlKey || event.metaKey || $("selecting").checked) this.toggle(place);
    this.cursor = place;
    if (!event.shiftKey) this.startRange();
    active = panes.indexOf(this);
    if (!(event.shiftKey || event.ctrlKey || event.metaKey || $("selecting").checked)) go({ face: this.ids[place] }, { step: true });
    panes.forEach((pane) => pane.draw());
  }

  toggle(place) {
    const id = this.ids[place];
    if (!selected.delete(id)) selected.add(id);
    drawMarking();
  }

  // A range begins here, and what was selected before stays.
  startRange() { Object.assign(this, { from: this.cursor, range: [] }); }

  // In the place of the range before from the same face; `range` holds what that added.
  selectRange(to) {
    this.range.forEach((id) => selected.delete(id));
    this.range = this.ids.slice(Math.min(this.from, to), Math.max(this.from, to) + 1).filter((id) => !selected.has(id));
    this.range.forEach((id) => selected.add(id));
    drawMarking();
  }

  moveTo(place, extend) {
    if (!this.ids.length) return;
    this.cursor = Math.max(0, Math.min(this.ids.length - 1, place));
    if (extend) this.selectRange(this.cursor);
    else this.startRange();
    const top = Math.floor(this.cursor / this.columns) * this.height;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    if (top + this.height + 8 > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = top + this.height + 8 - this.box.clientHeight;
    this.draw();
  }
}

function showPicture(element, id, size) {
  const list = listOf(id), row = id - list.start, [letter, , across] = index.sheets[size], place = row % across ** 2;
  element.style.backgroundImage = `url("${list.key}/${letter}${String(Math.floor(row / across ** 2)).padStart(4, "0")}.jpg")`;
  element.style.backgroundSize = `${100 * across}%`;
  element.style.backgroundPosition = `${(100 * (place % across)) / (across - 1)}% ${(100 * Math.floor(place / across)) / (across - 1)}%`;
}

// The buttons of a verdict, for faces or those that are selected.
function verdictButtons(ids) {
  const button = (text, title, verdict, label) => make("button", { title, onclick: () => judge(ids(), verdict, label) }, text);
  const choice = make("select", { "aria-label": "Shows another class", onchange: (event) => { const value = event.target.value; event.target.selectedIndex = 0; judge(ids(), "other", value === "" ? NONE : +value); } },
    make("option", { disabled: true, selected: true, value: "?" }, "≠ shows …"), ...offered().map((name, i) => make("option", { value: index.names.indexOf(name) }, `${i < 9 ? `${i + 1} ` : ""}${name}`)), make("option", { value: "" }, "0 none of them"));
  return [button("✓ right", "r", "right"), button("✗ wrong", "w", "wrong"), choice, button("take back", "u", null)];
}

async function judge(ids, verdict, label) {
  const single = openFace !== null || !selected.size;
  const marked = await mark(ids, verdict, label), pane = panes[active];
  if (!marked || !single || verdict === null || !pane) return;
  if (openFace !== null) step(1);
  else pane.moveTo(pane.cursor + 1);
}

function selectNone() {
  selected.clear();
  drawMarking();
  panes.forEach((pane) => { pane.startRange(); pane.draw(); });
}

function drawMarking() {
  $("marking").hidden = !selected.size;
  if (!selected.size) return;
  const clear = make("button", { onclick: selectNone }, "select none");
  $("marking").replaceChildren(make("strong", {}, `${count(selected.size)} selected`), ...verdictButtons(() => [...selected]), clear);
}

// ---- one face ----------------------------------------------------------------------------------------------------------------

let openFace = null, landmarks = true;

async function loadDetails(id) {
  const list = listOf(id), row = id - list.start, per = index.sheets.tiles[2] ** 2;
  const name = `${list.key}/d${String(Math.floor(row / per)).padStart(4, "0")}`;
  const details = await gallery.load(name);
  const kept = [...gallery.loads.keys()].filter((key) => /\/d\d+$/.test(key));
  if (kept.length > DETAILS_KEPT) gallery.forget(kept[0]);
  return details[row % per];
}

function step(by) {
  const pane = panes[active], place = pane?.ids.indexOf(openFace) ?? -1;
  if (place < 0 || place + by < 0 || place + by >= pane.ids.length) return;
  pane.moveTo(place + by);
  go({ face: pane.ids[place + by] });
}

// Another gallery may have another face at this number.
async function findFace(digits) {
  const known = lists.filter((list) => list.kind !== "anchor");
  await Promise.all(known.map(loadNames));
  if (!state.face?.endsWith(`.${digits}`)) return;
  const found = known.flatMap((list) => list.names.content.flatMap((content, row) => (content.startsWith(digits) ? [list.start + row] : [])));
  const face = found.find((id) => panes.some((pane) => pane.ids.includes(id))) ?? found[0];
  if (face === undefined) showNone();
  else go({ face });
}

function showNone() {
  closeFace();
  say("The face of this address is not in this gallery.");
}

async function drawFace() {
  const id = openFace, list = listOf(id), digits = state.face?.split(".")[1] ?? "", known = isFace(id);
  const isOpen = () => id === openFace && id === parseInt(state.face, 10); // else `show` draws what the address names now
  if (!isOpen()) return;
  if (!known && !digits) return showNone();
  if (known && !list.ready) await loadRows(list);
  const [face] = await Promise.all(known ? [loadDetails(id), verdicts.size ? loadNames(list) : null] : []);
  if (!isOpen()) return;
  if (!face?.content.startsWith(digits)) return findFace(digits);
  if (!digits) {
    history.replaceState(null, "", writeAddress({ ...state, face: `${id}.${face.content.slice(0, 12)}` }));
    state = readAddress();
  }
  const group = list.kind, anchors = byKey.get(`${group}-anchor`);
  if (anchors && face.anchors.length) await Promise.all([loadRows(anchors), loadNames(anchors)]);
  if (!isOpen()) return;
  const pane = panes.find((one) => one.ids.includes(id)), place = pane ? pane.ids.indexOf(id) : -1;
  if (pane) { active = panes.indexOf(pane); if (pane.cursor !== place) pane.moveTo(place); }
  const label = index.names[column.label[id]], truth = column.truth[id];
  const facts = [
    ["Shows, as mined", label], ["Truth", truth === NONE ? "" : index.names[truth]],
    ["Verdict", verdictOf[id] ? [VERDICTS[verdictOf[id]], index.names[verdictLabel[id]]].filter(Boolean).join(": ") : ""],
    [index.rule.replaceAll("_", " "), decimal(column.margin[id])], ["Rank", column.rank[id] ? count(column.rank[id]) : "not mined"], ["Cosine", decimal(column.cosine[id])],
    ...(index.compare && list.kind !== "gone" ? [[`In ${index.compare.title}`, column.before[id] === NONE ? "not mined" : `${index.names[column.before[id]]}, rank ${count(column.before_rank[id])}, ${decimal(column.before_margin[id])}`]] : []),
    ["Pool", index.pools[column.pool[id]]], ["Face", face.face_id], ["Source", face.source], ["Person", face.subject], ["Detection", face.score === null ? "" : decimal(face.score)], ["Content", face.content],
  ].filter(([, value]) => value);
  const lineage = Object.entries(index.lineage[group === "gone" ? "gone" : "mined"]).filter(([path]) => !index.pools.some((pool) => pool !== index.pools[column.pool[id]] && path.endsWith(`/${pool}`)));
  const terms = (pairs) => make("dl", {}, ...pairs.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  $("face").replaceChildren(
    make("div", { className: "head" }, make("strong", {}, label), make("span", {}, place < 0 ? "" : `${count(place + 1)} of ${count(pane.ids.length)}`),
      make("button", { onclick: () => step(-1), "aria-label": "Face before" }, "←"), make("button", { onclick: () => step(1), "aria-label": "Next face" }, "→"), make("button", { onclick: closeFace, "aria-label": "Close" }, "✕")),
    make("div", { className: "body" },
      make("div", {}, drawCrop(face), make("p", { className: "buttons" }, ...verdictButtons(() => [id])), make("label", {}, make("input", { type: "checkbox", id: "landmarks", checked: landmarks, onchange: (event) => { landmarks = event.target.checked; drawFace(); } }), " landmarks")),
      make("div", {}, terms(facts), ...drawCosines(face, label)),
      make("div", { className: "wide" }, ...drawAnchors(face, anchors), make("details", {}, make("summary", {}, "Lineage by dvc.lock"), terms(lineage)), ...index.notes.map((note) => make("p", { className: "warn" }, note)))));
  if (!$("face").open) { $("face").showModal(); $("face").focus(); }
}

function drawCrop(face) {
  const [width, height] = face.size, svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  for (let i = 0; landmarks && face.landmarks && i < 10; i += 2) {
    const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    // The centre of the first pixel is 0 in the landmarks, and half a unit in a picture.
    for (const [name, value] of [["cx", face.landmarks[i] + 0.5], ["cy", face.landmarks[i + 1] + 0.5], ["r", width / 70]]) dot.setAttribute(name, value);
    svg.append(dot);
  }
  return make("figure", { className: "crop" }, make("img", { src: face.picture, alt: `The crop of ${face.face_id}`, width, height }), svg, make("figcaption", {}, `${width} × ${height} pixels, as stored`));
}

function drawCosines(face, label) {
  if (!face.cosines) return [];
  const bars = index.classes.map((name, i) => [name, face.cosines[i]]).sort((a, b) => (b[1] ?? -2) - (a[1] ?? -2)).map(([name, value]) => {
    const bar = make("i");
    bar.style.left = `${50 + 50 * Math.min(value ?? 0, 0)}%`;
    bar.style.width = `${50 * Math.abs(value ?? 0)}%`;
    return make("div", { className: name === label ? "bar own" : "bar" }, make("span", {}, name), make("span", { className: "track" }, bar), make("span", {}, value === null ? "–" : value.toFixed(3)));
  });
  return [make("h3", {}, "Cosine to each class, from −1 to 1"), make("div", { className: "cosines" }, ...bars)];
}

function drawAnchors(face, anchors) {
  if (!anchors || !face.anchors.length) return [];
  const tiles = face.anchors.map(([row, cosine]) => {
    const id = anchors.start + row, picture = make("i", { className: "picture" });
    showPicture(picture, id, "tiles");
    return make("figure", { title: anchors.names.face_id[row] }, picture, make("figcaption", {}, `${index.names[column.label[id]] ?? "–"} ${cosine === null ? "" : cosine.toFixed(3)}`));
  });
  return [make("h3", {}, `Nearest faces of ${index.pools[column.pool[anchors.start]]}, by cosine of embeddings`), make("div", { className: "anchors" }, ...tiles)];
}

const closeFace = () => go({ face: null });

// ---- events --------------------------------------------------------------------------------------------------------------------

function toggleFilters(open) {
  document.body.classList.toggle("filters", open);
  $("open-filters").setAttribute("aria-expanded", document.body.classList.contains("filters"));
}

function pressed(event) {
  if ($("who").open || $("help").open || event.altKey) return;
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "checkbox") return;
  const pane = panes[active], key = event.key, open = openFace !== null, across = open ? 1 : pane?.columns ?? 1;
  if (!pane) return;
  const here = open ? [openFace] : selected.size ? [...selected] : pane.ids.length ? [pane.ids[pane.cursor]] : [];
  const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across, PageUp: -across * Math.max(1, Math.floor(pane.box.clientHeight / pane.height)), PageDown: across * Math.max(1, Math.floor(pane.box.clientHeight / pane.height)), Home: -Infinity, End: Infinity };
  if (event.ctrlKey || event.metaKey) {
    if (key.toLowerCase() !== "a" || open) return;
    for (const one of panes.length > 1 ? [pane] : panes) one.ids.forEach((id) => selected.add(id));
    pane.startRange();
    drawMarking();
    pane.draw();
  } else if (open && (key === "ArrowLeft" || key === "ArrowRight")) step(moves[key]);
  else if (!open && key in moves) pane.moveTo(pane.cursor + moves[key], event.shiftKey);
  else if (key === "r") judge(here, "right");
  else if (key === "w") judge(here, "wrong");
  else if (key === "u") judge(here, null);
  else if (/^[0-9]$/.test(key) && key <= offered().length) judge(here, "other", key === "0" ? NONE : index.names.indexOf(offered()[key - 1]));
  else if (open && key === "l") { landmarks = !landmarks; drawFace(); }
  else if (!open && key === "Enter" && event.target.closest(".box") && pane.ids.length) go({ face: pane.ids[pane.cursor] }, { step: true });
  else if (!open && key === " " && event.target.closest(".box") && pane.ids.length) { pane.toggle(pane.cursor); pane.startRange(); pane.draw(); }
  else if (!open && key === "Escape") { selectNone(); toggleFilters(false); }
  else if (key === "?") $("help").showModal();
  else return;
  event.preventDefault();
}

async function start() {
  try {
    index = await gallery.load("index");
    setUp();
    state = readAddress();
    readVerdicts(await gallery.load("verdicts").catch(() => { say("What was judged before cannot be read; python -m fer_pipeline mined view says why."); return []; }));
    drawUnsaved();
    $("order").options[0].textContent = index.rule.replaceAll("_", " ");
    $("order").onchange = (event) => go({ order: event.target.value });
    for (const id of ["rising", "wall"]) $(id).onchange = (event) => go({ [id]: event.target.checked });
    $("open-filters").onclick = () => toggleFilters(!document.body.classList.contains("filters"));
    $("help-button").onclick = () => $("help").showModal();
    document.querySelector("[data-close]").onclick = () => $("help").close();
    $("face").onclose = () => { if (openFace !== null) closeFace(); panes[active]?.box.focus({ preventScroll: true }); };
    $("face").onclick = (event) => { if (event.target === $("face")) closeFace(); };
    addEventListener("keydown", pressed);
    addEventListener("hashchange", show);
    addEventListener("storage", takeStored);
    await show();
  } catch (error) {
    say(error.message);
  }
}

start();
