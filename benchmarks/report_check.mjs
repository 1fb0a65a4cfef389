// Opens every page of a report from disk in headless Chromium, at two widths, in both lights; report_check.py calls it.
// Arguments: Chromium, folder of the site, folder for screenshots or "", pages (none: all). Prints one JSON line a visit.
import { readdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve, join } from "node:path";
import { pathToFileURL } from "node:url";

const require = createRequire(join(process.cwd(), "x.js")); // packages of the folder that it is called in
const puppeteer = require("puppeteer-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const [chromium, site, shots, ...only] = process.argv.slice(2);
const browser = await puppeteer.launch({ executablePath: chromium, args: ["--no-sandbox", "--hide-scrollbars"] });
for (const name of readdirSync(site).filter((each) => each.endsWith(".html") && (!only.length || only.includes(each))).sort()) {
  for (const width of [1280, 390]) {
    for (const light of ["light", "dark"]) {
      const page = await browser.newPage();
      await page.setViewport({ width, height: 900 });
      await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: light }]);
      const address = pathToFileURL(resolve(site, name)).href, requests = [], errors = [];
      page.on("request", (each) => { if (each.url() !== address && !each.url().startsWith("data:")) requests.push(each.url()); });
      page.on("console", (each) => { if (["error", "warn"].includes(each.type())) errors.push(each.text()); });
      page.on("pageerror", (each) => errors.push(String(each)));
      const session = await page.createCDPSession();
      await session.send("Performance.enable", { timeDomain: "threadTicks" }); // processor time: others may use the machine
      const started = performance.now();
      await page.goto(address, { waitUntil: "load" });
      await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
      const milliseconds = Math.round(performance.now() - started);
      const { metrics } = await session.send("Performance.getMetrics");
      const busy = Math.round(1000 * metrics.find((each) => each.name === "TaskDuration").value);
      const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      const elements = await page.evaluate(() => document.querySelectorAll("*").length);
      const shown = await page.evaluate(() => document.documentElement.dataset.light);
      if (shots) {
        // a page of 500 runs is taller than Chromium draws into one picture
        const height = Math.min(8000, await page.evaluate(() => document.documentElement.scrollHeight));
        await page.screenshot({ path: join(shots, `${name.replace(".html", "")}-${width}-${light}.png`), clip: { x: 0, y: 0, width, height } });
      }
      // Both buttons that every page may have: they must work without an error.
      const sorted = await page.evaluate(() => {
        const button = document.querySelector("th button");
        button?.click();
        return button === null || button.closest("th").hasAttribute("aria-sort");
      });
      await page.evaluate(axe);
      const found = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
      const violations = found.violations.map((each) => ({ id: each.id, impact: each.impact, nodes: each.nodes.length,
        first: each.nodes[0].html.slice(0, 160), why: each.nodes[0].failureSummary.slice(0, 240) }));
      await page.evaluate(() => document.querySelector(".switch").click());
      const switched = await page.evaluate(() => document.documentElement.dataset.light);
      await page.evaluate(() => localStorage.clear());
      console.log(JSON.stringify({ name, width, light, milliseconds, busy, elements, requests, errors, wide, violations, sorted,
        lights: shown === light && switched !== light }));
      await page.close();
    }
  }
}
await browser.close();
