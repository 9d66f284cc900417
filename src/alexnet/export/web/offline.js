// Keeps the page in the browser, so that it opens without a network. `export --page` writes VERSION and FILES in front.
const SCOPE = self.registration.scope;
const NAME = `${SCOPE} ${VERSION}`;

self.addEventListener("install", (event) => event.waitUntil(keep().then(() => self.skipWaiting())));
self.addEventListener("activate", (event) => event.waitUntil(tidy().then(() => self.clients.claim())));
self.addEventListener("fetch", (event) => event.respondWith(answer(event.request)));

async function keep() {
  const kept = await caches.open(NAME);
  await kept.addAll(FILES.map((name) => new Request(name, { cache: "no-cache" }))); // unchanged files are not sent again
}

// Other pages of this host keep theirs.
async function tidy() {
  const old = (await caches.keys()).filter((name) => name.startsWith(`${SCOPE} `) && name !== NAME);
  await Promise.all(old.map((name) => caches.delete(name)));
}

async function answer(request) {
  const kept = await caches.open(NAME);
  return (await kept.match(request, { ignoreSearch: true })) ?? fetch(request);
}
