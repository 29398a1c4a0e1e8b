// node judge_page.cjs CHROMIUM PAGE.html: what axe-core finds wrong with a page, in light and dark, wide and narrow, as JSON.
const { chromium } = require("playwright-core");
const { pathToFileURL } = require("node:url");

async function judged(browser, url, colorScheme, width) {
  const context = await browser.newContext({ colorScheme, viewport: { width, height: 900 }, bypassCSP: true });
  const page = await context.newPage();
  const requests = [];
  page.on("request", (request) => requests.push(request.url()));
  await page.goto(url);
  const wider = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
  const smallest = await page.evaluate(() =>
    Math.min(...[...document.querySelectorAll("main *")].map((one) => parseFloat(getComputedStyle(one).fontSize))));
  await page.addScriptTag({ path: require.resolve("axe-core/axe.min.js") });
  const found = await page.evaluate(() => axe.run());
  await context.close();
  const violations = found.violations.map((one) => `${one.id}: ${one.nodes[0].html.slice(0, 200)}`);
  return { colorScheme, width, violations, wider, smallest, requests: requests.filter((one) => one !== url) };
}

(async () => {
  const [executablePath, path] = process.argv.slice(2);
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  const results = [];
  for (const scheme of ["light", "dark"])
    for (const width of [1400, 400]) results.push(await judged(browser, pathToFileURL(path).href, scheme, width));
  await browser.close();
  console.log(JSON.stringify(results));
})();
