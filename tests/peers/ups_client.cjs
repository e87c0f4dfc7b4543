// A SCU of DIMSE-N services (UPS unless a step names another SOP class) that shares no code with the node: does what it reads on standard input, prints what was answered.
'use strict';
const { Client, Dataset, log, requests } = require(process.argv[2]);
log.setLevel('silent');
const [host, port, calling, called] = process.argv.slice(3);
const PUSH = '1.2.840.10008.5.1.4.34.6.1';

function requestOf(step) {
  const { what, uid, using, action, tags, attributes, sop = PUSH } = step;
  const made = {
    create: () => new requests.NCreateRequest(sop, uid, using),
    set: () => new requests.NSetRequest(sop, uid, using),
    get: () => new requests.NGetRequest(sop, uid, tags, using),
    act: () => new requests.NActionRequest(sop, uid, action, using),
    find: () => new requests.CFindRequest(),
  }[what]();
  if (what === 'find') made.setAffectedSopClassUid(using);
  if (attributes) made.setDataset(new Dataset(attributes, '1.2.840.10008.1.2.1'));
  return made;
}

function ask(step) {
  return new Promise((resolve, reject) => {
    const answers = [];
    const request = requestOf(step);
    request.on('response', (response) =>
      answers.push({
        status: response.getStatus(),
        attributes: response.hasDataset() ? response.getDataset().getElements() : null,
      })
    );
    const client = new Client();
    client.addRequest(request);
    client.on('networkError', reject);
    client.on('closed', () => resolve(answers));
    client.send(host, Number(port), calling, called);
  });
}

let text = '';
process.stdin.on('data', (chunk) => (text += chunk));
process.stdin.on('end', async () => {
  const all = [];
  for (const step of JSON.parse(text)) all.push(await ask(step));
  process.stdout.write(JSON.stringify(all));
});
