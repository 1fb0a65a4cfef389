// Uses a page that is served, in headless Chromium; page_check.py calls it.
// Arguments: Chromium, the page's address, folder for screenshots or "". Prints one JSON line a step.
import { readFileSync, writeFileSync, mkdtempSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";

const require = createRequire(join(process.cwd(), "x.js")); // packages of the folder that it is called in
const puppeteer = require("puppeteer-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const [chromium, address, shots] = process.argv.slice(2);
const browser = await puppeteer.launch({ executablePath: chromium, args: ["--no-sandbox", "--hide-scrollbars"] });
const page = await browser.newPage();
let problems = [], refusals = 0; // refusals: answers of the page itself that Chromium writes to the console, and that are meant
page.on("request", (each) => { if (!each.url().startsWith(address) && !/^(data|blob):/.test(each.url())) problems.push(`asks for ${each.url()}`); });
page.on("console", (each) => {
  if (!["error", "warn"].includes(each.type())) return;
  if (refusals && each.text().includes("status of 4")) { refusals -= 1; return; }
  problems.push(`console: ${each.text()}`);
});
page.on("pageerror", (each) => problems.push(String(each)));

const light = (value) => page.emulateMediaFeatures([{ name: "prefers-color-scheme", value }]);
const wide = (width) => page.setViewport({ width, height: 900 });
const go = async (path) => { await page.goto(address + path, { waitUntil: "networkidle0" }); };
const settled = () => page.waitForNetworkIdle({ idleTime: 300 });
const count = (selector) => page.$$eval(selector, (all) => all.length);
const expect = (right, what) => { if (!right) problems.push(`expected ${what}`); };

const step = async (name, act) => {
  await act();
  const over = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  if (over > 0) problems.push(`${over} px wider than the window`);
  const unnamed = await page.$$eval("img", (all) => all.filter((each) => each.complete && !each.naturalWidth && each.src).map((each) => each.src.slice(0, 80)));
  problems.push(...unnamed.map((each) => `a picture that does not show: ${each}`));
  if (shots) {
    const height = Math.min(2400, await page.evaluate(() => document.documentElement.scrollHeight));
    await page.screenshot({ path: join(shots, `${name}.png`), clip: { x: 0, y: 0, width: page.viewport().width, height } });
  }
  await page.evaluate(axe);
  const found = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
  const violations = found.violations.map((each) => ({ id: each.id, impact: each.impact, nodes: each.nodes.length,
    first: each.nodes[0].html.slice(0, 160), why: each.nodes[0].failureSummary.slice(0, 240) }));
  console.log(JSON.stringify({ name, problems, violations }));
  problems = [];
};

const send = async (file) => { await (await page.$("form.drop input[type=file]")).uploadFile(file); };
const folder = mkdtempSync(join(tmpdir(), "page-check-"));
const image = join(folder, "mine.jpg"), broken = join(folder, "broken.jpg");

await wide(1280);
await light("light");
await step("search-empty", async () => {
  await go("/search");
  await page.waitForSelector("#browse, [role=alert]", { timeout: 300000 });
  await settled();
  expect(await count(".wall img") > 0, "images to begin with");
});
const hint = process.env.PAGE_CHECK_TEXT ?? "a dog in the snow";
await step("search-text", async () => {
  await page.type("#text", hint); // the field has the focus
  await page.keyboard.press("Enter");
  await page.waitForSelector(".found");
  await settled();
  expect(await count(".found img") > 0, "images that were found");
});
const picture = await page.evaluate(async () => {
  const blob = await (await fetch(document.querySelector(".found img").src)).blob();
  return [...new Uint8Array(await blob.arrayBuffer())];
});
writeFileSync(image, Buffer.from(picture));
writeFileSync(broken, "this is no image");
await step("search-dark", async () => { await page.click(".switch"); });
await step("search-narrow", async () => { await page.click(".switch"); await wide(390); await settled(); });
await wide(1280);
await step("search-image", async () => {
  await go("/search");
  await send(image);
  await page.waitForSelector(".asked img");
  await settled();
  expect(await page.evaluate(() => document.activeElement.tagName === "H2"), "the focus on the answer");
});
await step("search-broken", async () => {
  refusals = 1;
  await send(broken);
  await page.waitForSelector("#results [role=alert]");
  expect((await page.$eval("[role=alert]", (each) => each.textContent)).startsWith("broken.jpg is not an image"), "the file's name and what is wrong");
});
await step("captions-empty", async () => {
  await go("/captions");
  await page.waitForSelector("#browse, [role=alert]", { timeout: 300000 });
  await settled();
  expect(await count(".wall img") > 0, "images to begin with");
});
await step("captions-maps", async () => {
  const runs = await page.$$eval("#run option", (all) => all.map((each) => each.value));
  for (const run of runs) { // one with maps
    await go(`/captions?run=${encodeURIComponent(run)}`);
    await page.waitForSelector("#browse, [role=alert]", { timeout: 300000 });
    if ((await page.$eval(".about", (each) => each.textContent)).includes("ITuning")) break;
  }
  await page.click(".wall a");
  await page.waitForSelector(".heat[src]");
  await settled();
  expect(await count(".panels li") > 1, "a panel for each word");
});
await step("captions-keyboard", async () => {
  const word = () => page.$eval(".chooser :checked", (each) => each.value), before = await word();
  await page.focus(".chooser :checked");
  await page.keyboard.press("ArrowRight");
  expect(await word() !== before, "another word by the arrow key");
  expect((await page.$eval(".told", (each) => each.textContent)).includes("looks most at"), "where it looks in words");
});
await step("captions-dark", async () => { await page.click(".switch"); });
await step("captions-narrow", async () => { await wide(390); await settled(); });
await wide(1280);
await page.click(".switch");
await step("captions-image", async () => {
  await send(image);
  await page.waitForFunction(() => [...document.querySelectorAll("dd")].some((each) => each.textContent === "mine.jpg"));
  await page.select("#layer", "mean");
  await page.waitForFunction(() => [...document.querySelectorAll("dd")].some((each) => each.textContent.startsWith("mean of")));
});
if ((await (await fetch(`${address}/pairs`)).text()).includes("<option")) {
  await step("pairs-empty", async () => {
    await go("/pairs");
    await page.waitForSelector("#browse, [role=alert]", { timeout: 300000 });
    await settled();
    expect(await count(".wall img") > 0, "images to begin with");
  });
  await step("pairs-maps", async () => {
    await page.click(".wall a");
    await page.waitForSelector(".heat[src]");
    await settled();
    expect(await count(".panels li") > 1, "a panel for each word");
  });
}
await step("no-such-page", async () => {
  refusals = 1;
  await go("/search?run=none");
  expect(await count("[role=alert]") === 1, "a message");
});
await browser.close();
