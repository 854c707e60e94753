// Drives the pages of a gallery: node gallery_pages.cjs WORDS.json, which names addresses and what is expected.
// Prints what the first screens loaded as one line of JSON; anything unexpected ends it with an error.
"use strict";
const assert = require("node:assert/strict");
const fs = require("node:fs");
const path = require("node:path");

const words = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const { chromium } = require(words.playwright);
const anger = words.classes?.anger;
const count = (number) => number.toLocaleString("en");
const problems = [];

async function open(browser, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1400, height: 900 }, acceptDownloads: true, ...options });
  return watch(context).newPage();
}

function watch(context) {
  context.setDefaultTimeout(60_000);
  context.on("console", (message) => { if (message.type() === "error") problems.push(message.text()); });
  context.on("weberror", (error) => problems.push(error.error().message));
  context.on("request", (request) => {
    const url = request.url(), own = [new URL("/", words.address).href, words.file.replace("index.html", ""), "data:", "blob:"];
    if (!own.some((start) => url.startsWith(start))) problems.push(`a request of ${url}`);
  });
  return context;
}

// Bytes and requests until every picture of the first screen is there.
async function measure(page, url) {
  const sizes = [];
  if (url.startsWith("file:")) page.on("requestfinished", (request) => request.url().startsWith("file:") && sizes.push(fs.statSync(new URL(request.url().split("#")[0])).size));
  await page.goto(url);
  await page.waitForSelector(".tile");
  await settle(page);
  if (!sizes.length) sizes.push(...(await page.evaluate(() => [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")].map((one) => one.transferSize))));
  return { bytes: sizes.reduce((sum, size) => sum + size, 0), requests: sizes.length };
}

// Until the page has been complete and asked for nothing for a while.
async function settle(page) {
  for (let known = -1, now = 0; known !== now; ) {
    known = now;
    await page.waitForTimeout(500);
    now = await page.evaluate(() => (document.readyState === "complete" ? performance.getEntriesByType("resource").length : -1));
    if (now < 0) known = -2;
  }
}

const text = (page, selector) => page.locator(selector).first().textContent();
const params = (page) => new URLSearchParams(new URL(page.url()).hash.slice(1));
const until = (page, selector, wanted) => page.waitForFunction(([one, two]) => document.querySelector(one)?.textContent.includes(two), [selector, wanted]);
const close = async (page) => {
  await page.keyboard.press("Escape");
  await page.waitForFunction(() => !document.querySelector("#face").open && !/face=/.test(location.hash)); // the dialog tells of its end a moment later
};
const shoot = (page, name) => page.screenshot({ path: path.join(words.shots, `${name}.png`) });

async function look(page) {
  // Page through a class: only what is in sight exists.
  assert.equal(await text(page, "#shown"), `${count(words.per_class)} faces`);
  assert.equal(await text(page, ".tile span"), anger.most);
  await shoot(page, "grid");
  for (let i = 0; i < 5; i++) await page.keyboard.press("PageDown");
  await page.keyboard.press("End");
  await page.waitForSelector(`.tile[aria-posinset="${words.per_class}"].cursor`);
  assert.ok(await page.locator(".tile").count() < 250);
  await page.keyboard.press("Home");
  await page.waitForSelector('.tile[aria-posinset="1"].cursor');
  const tops = await page.locator(".tile").evaluateAll((all) => all.map((tile) => tile.getBoundingClientRect().top));
  const across = tops.filter((top) => top === Math.min(...tops)).length;
  for (const [key, place] of [["ArrowRight", 2], ["ArrowDown", 2 + across], ["ArrowLeft", 1 + across], ["ArrowUp", 1]]) {
    await page.keyboard.press(key);
    await page.waitForSelector(`.tile[aria-posinset="${place}"].cursor`);
  }

  // Filter, with counts; then by margin too.
  await page.locator("#filter-pool label", { hasText: "street" }).locator("input").check();
  await until(page, "#shown", `${count(anger.pool)} of`);
  assert.equal(await text(page, ".tile span"), anger.best_in_pool);
  assert.deepEqual(params(page).getAll("only-pool"), ["street"]);
  await page.locator("#filter-pool label", { hasText: "street" }).locator("input").uncheck();
  assert.equal(await page.locator("#filter-truth label", { hasText: "right" }).locator("small").textContent(), count(anger.truth));
  assert.equal(await page.locator("#filter-status label", { hasText: "added" }).locator("small").textContent(), count(anger.added));
  await page.fill("#from", "0.5");
  await page.keyboard.press("Enter");
  await page.fill("#to", "0.6");
  await page.keyboard.press("Enter");
  await until(page, "#shown", `${count(anger.between)} of`);
  // A bar says how many faces it leaves.
  for (let i = 0; i < 20; i++) {
    const title = await page.evaluate((place) => { const bar = document.querySelectorAll(".bars button")[place]; bar.click(); return bar.title; }, i);
    await until(page, "#shown", `${title.match(/: (.*) faces/)[1]} of`);
  }
  await page.click("#filters button:text-is('No filters')");
  await until(page, "#shown", `${count(words.per_class)} faces`);
  await page.check("#rising");
  await page.waitForFunction((most) => document.querySelector(".tile span").textContent < most, anger.most);
  await page.uncheck("#rising");
  await page.selectOption("#order", "rank");
  await until(page, ".tile span", "#1");
  await page.selectOption("#order", "margin");
  await page.check("#wall");
  await page.waitForFunction(() => document.querySelectorAll(".tile").length > 200);
  await settle(page);
  await shoot(page, "wall");
  await page.uncheck("#wall");
  await page.waitForFunction(() => document.querySelectorAll(".tile").length < 150);

  // A face opens with its crop; names are text, whatever they hold.
  await page.locator(".box").focus();
  await page.keyboard.press("Home");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#face[open] .crop img");
  assert.ok(await page.evaluate(() => document.querySelector(".crop img").decode().then(() => document.querySelector(".crop img").naturalWidth)) === 112);
  assert.ok((await text(page, "#face dl")).includes(words.hostile));
  assert.equal(await page.locator("#face circle").count(), 5);
  assert.equal(await page.locator(".cosines .bar").count(), 7);
  assert.equal(await page.locator(".anchors figure").count(), 6);
  assert.equal(await page.evaluate(() => typeof hacked), "undefined");
  await shoot(page, "face");
  await page.keyboard.press("ArrowRight");
  await until(page, "#face .head", `2 of ${count(words.per_class)}`);
  await page.waitForFunction(() => /face=1\.[0-9a-f]{12}/.test(location.hash));
  await page.keyboard.press("l");
  await page.waitForFunction(() => !document.querySelector("#face circle"));

  // Its address shows it where another gallery has it, and no other face.
  const address = page.url().replace("face=1.", "face=7.");
  await close(page);
  await page.goto(address);
  await page.waitForSelector("#face[open]");
  await until(page, "#face .head", `2 of ${count(words.per_class)}`);
  await close(page);
  await page.goto(address.slice(0, -12) + "0".repeat(12));
  await until(page, "#status", "The face of this address is not in this gallery.");
  assert.equal(await page.locator("#face[open]").count(), 0);
}

async function judge(page) {
  const tile = (place) => page.locator(`.tile[aria-posinset="${place}"]`);
  await page.locator(".box").focus();
  await page.keyboard.press("Home");
  for (let i = 0; i < 3; i++) await page.keyboard.press("Shift+ArrowRight");
  await until(page, "#marking", "4 selected");
  await page.keyboard.press("Control+a");
  await until(page, "#marking", `${count(words.per_class)} selected`);
  await page.keyboard.press("Escape");
  await page.waitForSelector("#marking", { state: "hidden" });
  await tile(1).click({ modifiers: ["Control"] });
  await tile(10).click({ modifiers: ["Shift"] });
  await until(page, "#marking", "10 selected");
  await shoot(page, "selected");
  await page.keyboard.press("w");
  await page.fill("#name", "Ann");
  await page.keyboard.press("Enter");
  await until(page, "#unsaved", "10 verdicts");
  assert.equal(await page.locator(".tile.wrong").count(), 10);
  assert.equal(await page.locator("#filter-verdict label", { hasText: "wrong" }).locator("small").textContent(), "10");
  await page.keyboard.press("Escape");
  await tile(11).click();
  await page.waitForSelector("#face[open] .crop");
  await page.keyboard.press("3"); // other: fear, and on to the next
  await until(page, "#face .head", "12 of");
  await page.keyboard.press("r");
  await until(page, "#face .head", "13 of");
  await page.waitForSelector("#unsaved:has-text('12 verdicts')");
  await page.keyboard.press("ArrowLeft");
  await until(page, "#face .head", "12 of");
  await page.keyboard.press("u");
  await page.waitForSelector("#unsaved:has-text('11 verdicts')");
  await close(page);

  // What was judged outlives a reload, is a filter, and is downloaded and saved as CSV.
  await page.reload();
  await page.waitForFunction(() => document.querySelectorAll(".tile.wrong").length === 10);
  await page.locator("#filter-verdict label", { hasText: "wrong" }).locator("input").check();
  await until(page, "#shown", "10 of");
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#download")]);
  await download.saveAs(path.join(path.dirname(process.argv[2]), "review.csv"));
  assert.equal(params(page).has("token"), false);
  await page.click("#save");
  await until(page, "#status", "11 verdicts saved");
  await page.waitForSelector("#download", { state: "detached" });
  await takeBack(page);
}

// A face's own class is "right" for the line, the tile and the file; and what was saved is taken back, also after a reload.
async function takeBack(page) {
  const tile = (place) => page.locator(`.tile[aria-posinset="${place}"]`);
  const save = async (number, kept) => {
    await page.click("#save");
    await until(page, "#status", `${number} verdicts saved, ${kept} kept`);
    await page.waitForSelector("#download", { state: "detached" });
  };
  await page.click("#filters button:text-is('No filters')");
  await tile(12).click();
  await page.waitForSelector("#face[open] .crop");
  await page.keyboard.press("1"); // anger, as mined, and on to the next
  await until(page, "#face .head", "13 of");
  assert.equal(await text(page, "#status"), "1 face right: anger");
  await close(page);
  await page.waitForSelector('.tile[aria-posinset="12"].right');
  await save(1, 12);
  await tile(12).click();
  await page.waitForSelector("#face[open] .crop");
  await page.click("#face button:text-is('take back')");
  await until(page, "#unsaved", "1 taken back only in this browser");
  assert.equal(await text(page, "#status"), "1 face taken back");
  await close(page);
  await save(1, 11);
  await page.reload(); // what was saved comes from the file now
  await page.waitForFunction(() => document.querySelectorAll(".tile.wrong").length === 10);
  await tile(1).click({ modifiers: ["Control"] });
  await tile(2).click({ modifiers: ["Control"] });
  await page.keyboard.press("u");
  await until(page, "#unsaved", "2 taken back");
  await page.reload(); // not saved, and kept by the browser
  await until(page, "#unsaved", "2 taken back");
  await page.waitForFunction(() => document.querySelectorAll(".tile.wrong").length === 8);
  await save(2, 9);
}

// Two tabs show and keep the verdicts of each other, until either saves all or takes them back.
async function judgeInTabs(page) {
  const other = await page.context().newPage(), tile = (tab, place) => tab.locator(`.tile[aria-posinset="${place}"]`);
  const mark = async (tab, place, key) => {
    await tab.bringToFront();
    await tile(tab, place).click({ modifiers: ["Control"] });
    await tab.keyboard.press(key);
    await tab.keyboard.press("Escape");
  };
  await other.goto(words.address.replace("#", "#view=mined&class=fear&"));
  await mark(page, 21, "w");
  await mark(page, 22, "w");
  await mark(other, 22, "w");
  for (const tab of [page, other]) await until(tab, "#unsaved", "3 verdicts");
  await other.click("#tabs a:has-text('anger')");
  await other.waitForSelector('.tile[aria-posinset="22"].wrong[aria-label^="anger"]'); // the tile of fear is wrong too
  await mark(other, 22, "u");
  await page.waitForSelector('.tile[aria-posinset="22"]:not(.wrong)');
  await until(page, "#unsaved", "2 verdicts");
  await page.click("#save");
  await until(page, "#status", "2 verdicts saved, 11 kept");
  for (const tab of [page, other]) {
    await tab.waitForSelector("#download", { state: "detached" });
    await tab.waitForSelector('.tile[aria-posinset="21"].wrong');
  }
  await other.close();
  await page.reload();
  await page.waitForSelector('.tile[aria-posinset="21"].wrong');
  assert.equal(await page.locator("#download").count(), 0);
}

async function compare(page) {
  await page.click("#tabs a:text-is('compare')");
  await page.waitForSelector("#overview table");
  assert.ok((await text(page, "#overview h2")).includes(words.before));
  await shoot(page, "changes");
  await page.click("#overview a:text-is('fear')");
  await page.waitForFunction(() => document.querySelectorAll(".pane").length === 2);
  const one = words.classes.fear, away = anger.relabelled; // anger now, and fear before
  await page.waitForFunction(() => document.querySelectorAll(".pane .tile").length > 20);
  assert.ok((await text(page, ".pane h2")).endsWith(` ${count(words.gone + away)}`));
  assert.ok((await page.locator(".pane h2").last().textContent()).endsWith(` ${count(one.added + one.relabelled)}`));
  await settle(page);
  await shoot(page, "compare");
  await page.locator(".box").last().focus();
  await page.keyboard.press("ArrowRight");
  await page.waitForSelector(".pane:last-child .tile.cursor[aria-posinset='2']");
  await page.locator("#filter-status label", { hasText: "relabelled" }).locator("input").check();
  await until(page, "#shown", `${count(away + one.relabelled)} of`);
  assert.ok((await page.locator(".pane:last-child .tile span").first().textContent()).includes("from neutral"));

  // What a verdict is about is said: the class that a face is mined as now.
  assert.ok((await text(page, ".pane h2")).includes("verdicts are on the class after →"));
  assert.ok((await text(page, ".pane:first-child .tile span")).includes("→ anger"));
  await page.locator(".pane:first-child .tile").first().click({ modifiers: ["Control"] });
  await page.keyboard.press("w");
  await until(page, "#status", "1 face wrong: anger");
  await page.keyboard.press("u");
  await until(page, "#status", "1 face taken back");
  await page.keyboard.press("Escape");
  await settle(page);

  // An address that is opened anew shows the same.
  const shown = await text(page, "#shown"), tiles = await page.locator(".tile").evaluateAll((all) => all.map((tile) => tile.getAttribute("aria-label")));
  await page.reload();
  await until(page, "#shown", shown);
  await page.waitForFunction((number) => document.querySelectorAll(".tile").length === number, tiles.length);
  assert.deepEqual((await page.locator(".tile").evaluateAll((all) => all.map((tile) => tile.getAttribute("aria-label")))).sort(), tiles.sort());
  await page.goBack();
  await page.waitForSelector("#overview table");
}

async function driveAll(browser) {
  const page = await open(browser);
  const served = await measure(page, words.address);
  await look(page);
  await judge(page);
  await judgeInTabs(page);
  await compare(page);
  const disk = await open(browser, { colorScheme: "dark" });
  const fromDisk = await measure(disk, words.file);
  assert.equal(await text(disk, "#shown"), `${count(words.per_class)} faces`);
  await shoot(disk, "dark");
  const phone = await open(browser, { viewport: { width: 390, height: 800 }, deviceScaleFactor: 2, hasTouch: true, isMobile: true });
  await measure(phone, words.file);
  for (const [name, hash] of [["phone", "#view=mined&class=fear"], ["phone_face", "#view=mined&class=fear&face=42858"], ["phone_compare", "#view=compare&class=fear"]]) {
    await phone.goto(words.file + hash);
    await settle(phone);
    await phone.waitForSelector(name === "phone_face" ? "#face .crop" : ".tile");
    assert.ok(await phone.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `${name} is wider than the screen`);
    await shoot(phone, name);
  }
  return { served, from_disk: fromDisk };
}

// ---- a small gallery with a list of faces, compared with a revision that has a class of its own, `contempt` ----------------

const at = (hash) => words.address.replace("#", `#${hash}&`);
const tileAt = (page, place) => page.locator(`.tile[aria-posinset="${place}"]`);
const says = (page, wanted) => until(page, "#status", wanted);
const name = async (page) => { await page.fill("#name", "Ann"); await page.keyboard.press("Enter"); };

async function load(page, hash, address = at(hash)) {
  await page.goto("about:blank"); // another # alone loads nothing
  await page.goto(address, { waitUntil: "commit" }); // names that are held back keep it from being loaded
}

// Each listed face has one state since the other revision, also where neither mined it.
async function list(page) {
  await load(page, "");
  await until(page, "#shown", `${words.listed} faces`);
  const boxes = page.locator("#filter-status label");
  assert.deepEqual(Object.fromEntries(await boxes.evaluateAll((all) => all.map((one) => [one.children[1].textContent, +one.children[2].textContent]))), words.status);
  for (const [key, number] of Object.entries(words.status)) {
    const box = boxes.filter({ has: page.locator(`.key:text-is("${key}")`) }).locator("input");
    await box.check();
    await until(page, "#shown", `${number} of`);
    if (key === "removed") {
      await tileAt(page, 1).click();
      await page.waitForSelector("#face[open]");
      const facts = await page.locator("#face dl").first().evaluate((one) => Object.fromEntries([...one.querySelectorAll("dt")].map((term) => [term.textContent, term.nextSibling.textContent])));
      assert.equal(facts.Rank, "not mined");
      assert.ok(facts["In workspace"].startsWith(words.removed[facts.Face]), JSON.stringify(facts));
      await close(page);
    }
    await box.uncheck();
    await until(page, "#shown", `${words.listed} faces`);
  }
}

// A verdict can name the classes of today alone, and one of before does not keep the others from being saved.
async function judgeOldClass(page) {
  await load(page, "view=compare&class=contempt");
  await page.locator(".tile", { hasText: "out" }).first().click({ modifiers: ["Control"] }); // others are of a class of today
  assert.deepEqual(await page.locator("#marking option").allTextContents(), ["≠ shows …", "1 anger", "2 fear", "3 neutral", "0 none of them"]);
  await page.keyboard.press("w");
  await says(page, "1 face not judged: contempt is no class now");
  assert.equal(await page.locator("#who[open]").count(), 0);
  await page.keyboard.press("2");
  await name(page);
  await says(page, "1 face other: fear");
  await page.evaluate(() => {
    const [key, text] = Object.entries(localStorage).find(([key]) => key.endsWith('"Ann"]'));
    localStorage.setItem(key.replace("Ann", "Bob"), text.replace("other", "wrong").replace("fear", "contempt"));
    localStorage.setItem(`${key} damaged`, text);
  });
  await page.reload();
  await says(page, "What was judged here before cannot be read.");
  await until(page, "#unsaved", "2 verdicts");
  await page.click("#save");
  await says(page, "1 verdicts saved, 1 kept; 1 on contempt, no class now, only here");
  await until(page, "#unsaved", "1 verdict only");
}

// What was judged is known late where names come late, and what was done meanwhile stays.
async function waitForNames(page) {
  await load(page, "view=mined&class=anger");
  for (const place of [1, 2, 3]) await tileAt(page, place).click({ modifiers: ["Control"] });
  await page.keyboard.press("w");
  await says(page, "3 faces wrong: anger");
  let send;
  const hold = () => { const held = new Promise((done) => { send = done; }); return page.route("**/names.js", async (route) => { await held; await route.continue(); }); };
  await hold();
  await load(page, "view=mined&class=anger&only-verdict=none");
  await tileAt(page, 5).click();
  await page.waitForFunction(() => /face=/.test(location.hash));
  send();
  await page.waitForSelector("#face[open]");
  await close(page);
  await until(page, "#shown", `${words.anger - 3} of ${words.anger}`);
  await page.unroute("**/names.js");
  await hold();
  await load(page, "view=mined&class=anger");
  await tileAt(page, 7).click({ modifiers: ["Control"] });
  assert.equal(await page.locator(".tile.wrong").count(), 0);
  send();
  await page.waitForSelector(".tile.wrong");
  assert.equal(await page.locator(".tile.wrong").count(), 3);
  assert.equal(await text(page, "#marking strong"), "1 selected");
  await page.unroute("**/names.js");
}

// A range takes the place of the one before it from the same face, and leaves what was selected otherwise.
async function selectRanges(page) {
  const places = () => page.locator('.tile[aria-selected="true"]').evaluateAll((all) => all.map((tile) => +tile.getAttribute("aria-posinset")).sort((a, b) => a - b));
  await load(page, "view=mined&class=anger");
  await page.waitForSelector(".tile");
  await page.locator(".box").focus();
  for (const key of [..."RRRRRLLL"]) await page.keyboard.press(key === "R" ? "Shift+ArrowRight" : "Shift+ArrowLeft");
  assert.deepEqual(await places(), [1, 2, 3]);
  await page.keyboard.press("Escape");
  for (const [place, key] of [[2, "Control"], [12, "Control"], [5, "Control"], [9, "Shift"], [1, "Shift"], [6, "Shift"]]) await tileAt(page, place).click({ modifiers: [key] });
  assert.deepEqual(await places(), [2, 5, 6, 12]);
  await page.keyboard.press("Control+a");
  await page.keyboard.press("Shift+ArrowLeft");
  await until(page, "#marking", `${words.anger} selected`);
  await load(page, "view=mined&class=anger&only-pool=nowhere");
  await page.waitForSelector(".empty");
  for (const key of ["Shift+ArrowRight", "Space", "r"]) await page.keyboard.press(key);
  assert.ok(await page.locator("#marking").isHidden());
}

// Addresses of what is not here are said, and leave a page that works.
async function openOthers(page) {
  for (const face of [`${words.total}`, `${words.total}.abc`, "9".repeat(400)]) {
    await load(page, `view=mined&class=anger&face=${face}`);
    await says(page, "The face of this address is not in this gallery.");
    assert.equal(params(page).has("face"), false);
    await page.keyboard.press("ArrowRight");
    await page.waitForSelector(".tile.cursor[aria-posinset='2']");
    await page.keyboard.press("r");
    await says(page, "1 face right: anger");
  }
  await load(page, "view=chosen&class=anger");
  await until(page, "#shown", `${words.listed} faces`);
  await page.waitForSelector("#filter-class");
  await load(page, "", at("view=mined&class=anger&only-status=same").replace("/#", "/plain/#")); // compared with nothing
  await until(page, "#shown", `0 of ${words.anger}`);
  await page.locator("#filter-status label", { hasText: "same" }).locator("input").click(); // with which the filter goes
  await until(page, "#shown", `${words.anger} faces`);
}

// A browser that is told to keep nothing shows faces, takes verdicts and saves them, and says what it does not keep.
async function denyStorage() {
  const folder = path.join(path.dirname(process.argv[2]), "profile");
  fs.mkdirSync(path.join(folder, "Default"), { recursive: true });
  fs.writeFileSync(path.join(folder, "Default", "Preferences"), JSON.stringify({ profile: { default_content_setting_values: { cookies: 2 } } }));
  const context = watch(await chromium.launchPersistentContext(folder, { ...launch, viewport: { width: 1400, height: 900 } })), page = context.pages()[0];
  try {
    for (const address of [words.file, at("view=mined&class=fear")]) {
      await load(page, "", address);
      await says(page, "What was judged here before cannot be read.");
      assert.equal(await page.evaluate(() => { try { return String(localStorage); } catch (error) { return error.name; } }), "SecurityError");
      await tileAt(page, 1).click({ modifiers: ["Control"] });
      await tileAt(page, 2).click({ modifiers: ["Control"] });
      await page.keyboard.press("w");
      await name(page);
      await until(page, "#unsaved", "2 verdicts");
      await says(page, "The browser keeps no more verdicts: download them before you leave this page.");
      await page.keyboard.press("Escape");
      await tileAt(page, 3).click();
      await page.waitForSelector("#face[open]");
      await page.keyboard.press("r"); // the name is known
      await until(page, "#unsaved", "3 verdicts");
      await close(page);
    }
    await page.click("#save");
    await says(page, "3 verdicts saved");
  } finally {
    await context.close();
  }
}

async function driveList(browser) {
  const page = await open(browser);
  for (const part of [list, judgeOldClass, waitForNames, selectRanges, openOthers]) await part(page);
  await denyStorage();
  return {};
}

const launch = { executablePath: words.chromium, args: ["--no-sandbox", "--disable-gpu"] };

async function main() {
  fs.mkdirSync(words.shots, { recursive: true });
  const browser = await chromium.launch(launch);
  try {
    const measured = await (words.listed ? driveList : driveAll)(browser);
    assert.deepEqual(problems, []);
    console.log(JSON.stringify(measured));
  } finally {
    await browser.close();
  }
}

main().catch((error) => { console.error(error); console.error(problems); process.exit(1); });
