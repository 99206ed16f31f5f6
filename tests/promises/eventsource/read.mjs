// Follows every stream named on the command line as a page would, each until the server's 204 ends it for good, and
// prints what it heard: a line of JSON per stream.
import { EventSource } from "eventsource";

const follow = (url) =>
  new Promise((resolve) => {
    const source = new EventSource(url);
    const heard = { url, text: "", names: {}, ids: [], num_opened: 0, last: null };
    const hear = (event) => {
      heard.names[event.type] = (heard.names[event.type] ?? 0) + 1;
      heard.ids.push(event.lastEventId);
      heard.last = event.type;
      if (event.type === "token") heard.text += JSON.parse(event.data).text;
    };
    for (const name of ["queued", "started", "token", "done", "gap"]) source.addEventListener(name, hear);
    source.addEventListener("open", () => (heard.num_opened += 1));
    source.addEventListener("error", (event) => {
      // A stream's own `error` event and the connection's share a name; the first has data.
      if (event.data !== undefined) return hear(event);
      if (source.readyState === EventSource.CLOSED) resolve({ ...heard, status: event.code ?? null });
    });
  });

for (const heard of await Promise.all(process.argv.slice(2).map(follow))) console.log(JSON.stringify(heard));
