// One generation at a time: POST names a stream, an EventSource follows it (and rejoins it by itself after a broken
// connection, from the last event it has), DELETE stops it.
'use strict';

const $ = (id) => document.getElementById(id);
let stream = null; // {id, source, began, first, last, count}

async function call(method, path, body) {
  const init = { method };
  if (body) {
    init.headers = { 'content-type': 'application/json' };
    init.body = JSON.stringify(body);
  }
  const response = await fetch(path, init);
  if (response.status === 401 && await beginSession()) return call(method, path, body);
  if (response.ok) return response.status === 204 ? null : response.json();
  const failure = await response.json().catch(() => null);
  throw new Error(failure?.error?.message ?? `the server answered ${response.status}`);
}

// The key goes to the server once and is kept nowhere: what stays is a session, in a cookie that no script can read. A
// cookie, because an EventSource sends no headers of its own.
async function beginSession() {
  for (let question = 'This server wants an API key.'; ; question = 'That is not a key of this server.') {
    const key = prompt(question)?.trim();
    if (!key) return false;
    const init = { method: 'POST', headers: { authorization: `Bearer ${key}` } };
    const response = await fetch('v1/session', init).catch(() => null);
    if (response?.ok) return true;
  }
}

function say(text, failed = false) {
  $('status').textContent = text;
  $('status').classList.toggle('failed', failed);
}

function running(is) {
  $('run').disabled = is;
  $('stop').disabled = !is;
  $('output').setAttribute('aria-busy', String(is));
}

function figures() {
  const s = stream;
  if (!s.first) return;
  $('ttft').textContent = `${Math.round(s.first - s.began)} ms`;
  $('count').textContent = s.count;
  // The first token marks the start of the time, so it does not count.
  const seconds = (s.last - s.first) / 1000;
  if (s.count > 1 && seconds > 0) $('rate').textContent = ((s.count - 1) / seconds).toFixed(1);
}

function restart() {
  $('output').textContent = '';
  Object.assign(stream, { first: 0, last: 0, count: 0 });
}

function end(text, failed) {
  stream?.source?.close();
  stream = null;
  running(false);
  say(text, failed);
}

function token(data) {
  const output = $('output');
  const atEnd = output.scrollTop + output.clientHeight >= output.scrollHeight - 8;
  output.append(data.text);
  if (atEnd) output.scrollTop = output.scrollHeight;
  stream.last = performance.now();
  stream.first ||= stream.last;
  stream.count += data.tokens.length;
  figures();
}

function follow(id) {
  const source = new EventSource(`v1/streams/${id}`);
  stream.source = source;
  const on = (name, handle) => source.addEventListener(name, (e) => {
    if (stream?.source === source && e.data) handle(JSON.parse(e.data));
  });
  on('queued', (d) => say(d.position ? `Waiting, ${d.position} before this one.` : 'Waiting.'));
  on('started', () => say('Writing.'));
  on('token', token);
  on('gap', restart);
  on('done', (d) => end(d.finish_reason === 'length' ? 'Stopped at the most tokens.' : 'Done.'));
  on('error', (d) => end(d.error.code === 'cancelled' ? 'Stopped.' : `Failed: ${d.error.message}`, d.error.code !== 'cancelled'));
  // The connection's own error has no data. A closed source will not come back by itself.
  source.onerror = (e) => {
    if (e.data || stream?.source !== source) return;
    if (source.readyState === EventSource.CLOSED) end('The stream is gone.', true);
    else say('Connection lost, rejoining.');
  };
}

// The address names the stream, so that another tab, or this one after a reload, can follow it too.
function attach(id) {
  stream.id = id;
  history.replaceState(null, '', `#${id}`);
  follow(id);
}

$('form').addEventListener('submit', async (e) => {
  e.preventDefault();
  if (stream) return;
  stream = { began: performance.now() };
  for (const id of ['ttft', 'count', 'rate']) $(id).textContent = '–';
  restart();
  running(true);
  say('Sending.');
  const prompt = $('prompt').value;
  const asked = {
    max_tokens: $('max-tokens').valueAsNumber,
    temperature: $('temperature').valueAsNumber,
    ...($('plain').checked ? { prompt } : { messages: [{ role: 'user', content: prompt }] }),
  };
  try {
    const created = await call('POST', 'v1/streams', asked);
    attach(created.id);
  } catch (failure) {
    end(`Failed: ${failure.message}`, true);
  }
});

$('stop').addEventListener('click', async () => {
  if (!stream?.id) return;
  say('Stopping.');
  try {
    await call('DELETE', `v1/streams/${stream.id}`);
  } catch (failure) {
    end(`Failed: ${failure.message}`, true);
  }
});

$('prompt').addEventListener('keydown', (e) => {
  if (e.key === 'Enter' && (e.ctrlKey || e.metaKey)) $('form').requestSubmit();
});

const named = /^#([0-9a-f]{32})$/.exec(location.hash);
if (named) {
  stream = { began: performance.now(), first: 0, last: 0, count: 0 };
  running(true);
  say('Joining.');
  attach(named[1]);
}

(async () => {
  let [model, chat] = ['MODEL', true];
  try {
    ({ id: model, chat } = (await call('GET', 'v1/models')).data[0]);
    $('model').textContent = model;
  } catch { /* the page still works without the name */ }
  if (!chat) {
    // A base model has no chat template: it can only go on with text.
    $('plain').checked = $('plain').disabled = true;
    $('prompt').value = 'The capital of France is';
  }
  const asked = chat ? { stream: true, messages: [{ role: 'user', content: 'Hello' }] } : { prompt: 'Hello' };
  const body = JSON.stringify({ model, ...asked });
  $('curl').textContent = `curl -N ${location.origin}/v1/${chat ? 'chat/completions' : 'streams'} \\\n  -H 'content-type: application/json' \\\n  -d '${body}'`;
})();
