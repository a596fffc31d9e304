// Shows pages to a headless Chromium and tells what it saw, as JSON on standard output:
//
//   node browser.mjs [--keep DIRECTORY] FILE.html...
//
// One entry per page: `complaints` (console messages, exceptions, refusals by the page's policy),
// `requests` (whatever it wanted beside itself), `headings`, and one of `views` per way to look at it
// (light, dark, phone, print): `overflow`, pixels by which it is wider than the screen; `cut`, texts
// that stand outside of their plot or, in print, of their table; `touching`, texts of one plot that
// overlap; `reading`, what a plot says under the pointer. --keep writes each view as PNG or PDF.
//
// The browser is spoken to over two pipes (Chrome DevTools Protocol), so no port is open. It keeps
// its profile in a directory of its own, which is removed.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

/** After this the browser is ended and the test fails: nothing here takes a tenth of it. */
const GIVE_UP_MS = 60_000;

const VIEWS = [
  { name: "light", width: 1200, media: "screen", scheme: "light" },
  { name: "dark", width: 1200, media: "screen", scheme: "dark" },
  { name: "phone", width: 390, media: "screen", scheme: "light" },
  // A4 without its margins of 1 cm, at 96 pixels per inch.
  { name: "print", width: 718, media: "print", scheme: "light" },
];

const files = process.argv.slice(2);
const keep = files[0] === "--keep" ? resolve(files.splice(0, 2)[1]) : undefined;

const profile = mkdtempSync(join(tmpdir(), "loadgen-browser-"));
const browser = spawn(
  process.env.CHROMIUM ?? "chromium",
  [
    "--headless=new",
    "--remote-debugging-pipe",
    `--user-data-dir=${profile}`,
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    // Its sandbox does not run as root, nor in many containers; these pages are our own.
    "--no-sandbox",
    "about:blank",
  ],
  { stdio: ["ignore", "ignore", "pipe", "pipe", "pipe"] },
);
let said = "";
browser.stderr.on("data", (text) => (said = (said + text).slice(-4000)));
const ended = new Promise((end) => browser.on("close", end));
browser.on("error", (error) => fail(`chromium does not start: ${error.message}; install it, or name it in CHROMIUM`));
browser.on("exit", () => fail(`chromium ended:\n${said}`));
const timer = setTimeout(() => fail(`chromium took longer than ${GIVE_UP_MS / 1000} s:\n${said}`), GIVE_UP_MS);

let over = false;
async function fail(reason) {
  if (over) return;
  console.error(reason);
  await close();
  process.exit(1);
}

async function close() {
  over = true;
  clearTimeout(timer);
  browser.kill("SIGKILL");
  if (browser.pid !== undefined) await ended;
  rmSync(profile, { recursive: true, force: true, maxRetries: 20, retryDelay: 50 });
}

// Messages are JSON, each ended by a zero byte.
let last = 0;
const waiting = new Map();
let listener = () => {};
function send(method, params = {}, sessionId = undefined) {
  const id = ++last;
  browser.stdio[3].write(JSON.stringify({ id, method, params, sessionId }) + "\0");
  return new Promise((done, failed) => waiting.set(id, { done, failed, method }));
}
browser.stdio[3].on("error", () => {});
let unread = Buffer.alloc(0);
browser.stdio[4].on("data", (bytes) => {
  unread = Buffer.concat([unread, bytes]);
  for (let end; (end = unread.indexOf(0)) >= 0; unread = unread.subarray(end + 1)) {
    const message = JSON.parse(unread.subarray(0, end).toString());
    const asked = waiting.get(message.id);
    if (asked === undefined) listener(message);
    else if (message.error) asked.failed(new Error(`${asked.method}: ${message.error.message}`));
    else asked.done(message.result);
    waiting.delete(message.id);
  }
});

/** Runs in the page: what does not fit. */
function look(printed) {
  const root = document.documentElement;
  const shown = (element) => element.getClientRects().length > 0;
  const plots = [...document.querySelectorAll("svg")].filter(shown);
  const cut = [];
  const touching = [];
  for (const plot of plots) {
    const frame = plot.getBoundingClientRect();
    const texts = [...plot.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
    texts.forEach(([text, box], index) => {
      const beyond = Math.max(frame.left - box.left, box.right - frame.right, frame.top - box.top, box.bottom - frame.bottom);
      if (beyond > 1) cut.push(text);
      for (const [other, there] of texts.slice(0, index)) {
        const across = Math.min(box.right, there.right) - Math.max(box.left, there.left);
        const down = Math.min(box.bottom, there.bottom) - Math.max(box.top, there.top);
        if (across > 0 && down > 3) touching.push(`${other} / ${text}`);
      }
    });
  }
  // Paper does not scroll.
  if (printed) {
    for (const box of document.querySelectorAll(".scroll, pre")) {
      if (box.scrollWidth > box.clientWidth + 1) cut.push(`${box.scrollWidth - box.clientWidth} px of: ${box.textContent.slice(0, 60)}`);
    }
  }
  return {
    overflow: Math.max(0, Math.max(root.scrollWidth, document.body.scrollWidth) - root.clientWidth),
    plots: plots.length,
    cut,
    touching,
    pointer: plots
      .filter((plot) => plot.nextElementSibling?.classList.contains("reading"))
      .slice(0, 1)
      .map((plot) => {
        plot.scrollIntoView({ block: "center" });
        const box = plot.getBoundingClientRect();
        return { x: box.left + box.width / 2, y: box.top + box.height / 2 };
      })[0],
    headings: [...document.querySelectorAll("h1, h2")].map((heading) => heading.textContent),
  };
}

function reading() {
  return [...document.querySelectorAll(".reading")].map((line) => line.textContent.trim()).find((text) => text !== "") ?? "";
}

async function show(file) {
  const url = pathToFileURL(resolve(file)).href;
  const { targetId } = await send("Target.createTarget", { url: "about:blank" });
  const { sessionId } = await send("Target.attachToTarget", { targetId, flatten: true });
  const page = { file: basename(file), complaints: [], requests: [], headings: [], views: {} };
  let loaded = () => {};
  listener = ({ method, params }) => {
    if (method === "Page.loadEventFired") loaded();
    if (method === "Runtime.exceptionThrown") page.complaints.push(params.exceptionDetails.exception?.description ?? params.exceptionDetails.text);
    if (method === "Runtime.consoleAPICalled") page.complaints.push(`console.${params.type}: ${params.args.map((arg) => arg.value).join(" ")}`);
    if (method === "Log.entryAdded") page.complaints.push(`${params.entry.source}: ${params.entry.text}`);
    if (method === "Network.requestWillBeSent" && params.request.url !== url) page.requests.push(params.request.url);
  };
  const call = (method, params) => send(method, params, sessionId);
  const evaluate = async (expression) => {
    const { result, exceptionDetails } = await call("Runtime.evaluate", { expression, returnByValue: true });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  };
  for (const domain of ["Page", "Runtime", "Log", "Network"]) await call(`${domain}.enable`);
  for (const view of VIEWS) {
    const mobile = view.name === "phone";
    await call("Emulation.setDeviceMetricsOverride", { width: view.width, height: 844, deviceScaleFactor: 1, mobile });
    await call("Emulation.setEmulatedMedia", { media: view.media, features: [{ name: "prefers-color-scheme", value: view.scheme }] });
    const done = new Promise((done) => (loaded = done));
    await call("Page.navigate", { url });
    await done;
    const { pointer, headings, ...seen } = await evaluate(`(${look})(${view.media === "print"})`);
    page.headings = headings;
    page.views[view.name] = seen;
    if (pointer !== undefined && view.media === "screen") {
      await call("Input.dispatchMouseEvent", { type: "mouseMoved", ...pointer });
      seen.reading = await evaluate(`(${reading})()`);
    }
    if (view.media === "print") {
      const { data } = await call("Page.printToPDF", { paperWidth: 8.27, paperHeight: 11.69, marginLeft: 0.394, marginRight: 0.394 });
      seen.pdf = Buffer.from(data, "base64").subarray(0, 5).toString();
      if (keep) writeFileSync(join(keep, `${page.file}.pdf`), Buffer.from(data, "base64"));
    } else if (keep) {
      const { data } = await call("Page.captureScreenshot", { captureBeyondViewport: true });
      writeFileSync(join(keep, `${page.file}.${view.name}.png`), Buffer.from(data, "base64"));
    }
  }
  await send("Target.closeTarget", { targetId });
  return page;
}

try {
  const pages = [];
  for (const file of files) pages.push(await show(file));
  await close();
  console.log(JSON.stringify(pages));
} catch (error) {
  await fail(error.stack);
}
