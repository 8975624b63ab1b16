// Calls a service every second. Node.js 18 or later has fetch.
import { readFile } from "node:fs/promises";
import { setTimeout } from "node:timers/promises";

async function call(url) {
  const token = await readFile("/var/run/idtoken/token", "utf8"); // for each call: it is renewed twice an hour
  const response = await fetch(url, { headers: { Authorization: `Bearer ${token}` } });
  return response.text();
}

for (;;) {
  console.log(await call("https://billing-x.run.app/prices"));
  await setTimeout(1000);
}
