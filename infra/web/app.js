// Count a bin in a photo, and check the count against the record.
// No framework and no third party: what the page needs is small, and a warehouse's browser should load nothing that it does not show.
// Everything that comes from outside (file names, the counter's words) enters the page as text, never as markup.

const RAW_LIMIT = 4_400_000 // bytes that pass through a Lambda as they are: 6 MB of event, in base64
const UPLOAD_LIMIT = 20_000_000 // bytes that the presigned form takes
const LONGEST = 2048 // pixels; the counter looks at 224, so nothing that counts is lost
const RETRIES = 2 // of a busy counter
const LONGEST_WAIT = 30 // seconds between two tries, whatever the server says
const PAUSE = 500 // milliseconds after the last change of the record before the counter is asked
const REMEMBERED = 300 // entries of the list; their small pictures must fit in the tab's storage

const $ = id => document.getElementById(id)
const main = document.querySelector('main')
const api = path => new URL(`api/${path}`, document.baseURI) // relative: the page may live below a stage, as in /prod/

const state = {
  photo: null, // from `preparePhoto`
  recorded: null, // whole number, or null where only a count is wanted
  used: false, // whether the record was already checked against a photo: it then belongs to that bin
  wantHeat: false,
  turn: 0, // grows with every photo, so that a slow one cannot overwrite a newer one
  asking: null, // AbortController of the question under way
  offline: false, // whether the last problem was the network
  history: [],
}

/* ---------------------------------------------------------------- Problems */

// Something the person at the page can act on.
class Problem extends Error {
  constructor(title, text, {detail = '', key = false, again = true, offline = false, status = 0} = {}) {
    super(title)
    Object.assign(this, {title, text, detail, key, again, offline, status})
  }
}

const ADVICE = {
  400: ['The photo was not accepted', 'Take the photo again, or choose another one.'],
  401: ['Access key needed', 'Enter the key that you were given. It is kept in this tab only.'],
  403: ['The counter refused', 'Ask whoever runs the counter for access.'],
  404: ['There is no counter at this address', 'Ask whoever runs this page: its API is missing.'],
  413: ['The photo is too large', 'Take it at a lower resolution, or choose a smaller one.'],
  415: ['This kind of file cannot be counted', 'Choose a JPEG or PNG photo.'],
  429: ['The counter is busy', 'Wait a minute, then try again.'],
  503: ['The counter is busy', 'Wait a minute, then try again.'],
  504: ['The counter took too long', 'Try again: the first photo after a pause can take longer.'],
}
const FAILED = ['The counter failed', 'Try again. If it stays like this, tell whoever runs the counter.']

function problemOf({status, json, id = json?.request_id}) {
  const [title, text] = ADVICE[status] ?? FAILED
  const said = typeof json?.error === 'string' ? json.error : typeof json?.message === 'string' ? json.message : '' // API Gateway itself says `message`
  const detail = [said && `The counter says: ${said.slice(0, 300)}`, `(${status}${id ? `, request ${id}` : ''})`].filter(Boolean).join(' ')
  return new Problem(title, text, {detail, status, key: status === 401, again: ![401, 404, 413, 415].includes(status)})
}

function unreachable() {
  if (navigator.onLine === false) return new Problem('No connection', 'The photo is kept here and counted as soon as the connection is back.', {offline: true})
  return new Problem('The counter cannot be reached', 'Check the network, then try again.', {offline: true})
}

/* ---------------------------------------------------------------- Asking */

const STOPPED = Symbol('stopped') // a question that nobody waits for any more

// One request with a time limit that covers the body too.
async function send(url, options, signal, seconds) {
  const limit = AbortSignal.timeout(seconds * 1000)
  try {
    const response = await fetch(url, {cache: 'no-store', redirect: 'error', ...options, signal: AbortSignal.any([signal, limit])})
    const text = await response.text()
    return {status: response.status, ok: response.ok, json: parsed(text), after: response.headers.get('retry-after'), id: response.headers.get('x-request-id') ?? undefined}
  } catch {
    if (signal.aborted) throw STOPPED
    if (limit.aborted) throw new Problem('No answer in time', `The counter said nothing for ${seconds} seconds. Try again.`)
    throw unreachable()
  }
}

function parsed(text) {
  try { return JSON.parse(text) } catch { return null }
}

// Seconds that the server asks to wait; it may say seconds or a date.
function waitOf(after, tries) {
  const seconds = /^\d+$/.test(after ?? '') ? Number(after) : (Date.parse(after) - Date.now()) / 1000
  return Math.min(Math.max(Number.isFinite(seconds) ? Math.ceil(seconds) : 2 * tries, 1), LONGEST_WAIT)
}

function sleep(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds)
    signal.addEventListener('abort', () => { clearTimeout(timer); reject(STOPPED) }, {once: true})
  })
}

// A busy counter is asked again by the page, not by the person; every second of waiting is shown.
async function sendPatiently(url, options, signal, seconds, waiting) {
  for (let tries = 1; ; tries++) {
    const answer = await send(url, options, signal, seconds)
    if (![429, 503].includes(answer.status) || tries > RETRIES) return answer
    for (let left = waitOf(answer.after, tries); left > 0; left--) {
      waiting(left, tries)
      await sleep(1000, signal)
    }
    waiting(0, tries)
  }
}

function keyHeader() {
  const key = stored(sessionStorage, 'key')
  return key ? {'x-api-key': key} : {}
}

// Put a large photo into the bucket by a form that the API signs; the key stands for the photo from then on.
async function upload(photo, signal, waiting) {
  const ask = {method: 'POST', headers: {'content-type': 'application/json', ...keyHeader()}, body: JSON.stringify({content_type: photo.blob.type, bytes: photo.blob.size})}
  const signed = await sendPatiently(api('uploads'), ask, signal, Number(main.dataset.seconds), waiting)
  if (!signed.ok) throw problemOf(signed)
  const form = new FormData()
  for (const [name, value] of Object.entries(signed.json.fields)) form.append(name, value)
  form.append('file', photo.blob) // S3 ignores what comes after the file, so it is last; it may redirect to the bucket's own region
  const put = await send(signed.json.url, {method: 'POST', body: form, credentials: 'omit', redirect: 'follow'}, signal, Number(main.dataset.uploadSeconds))
  if (!put.ok) throw new Problem('The photo could not be stored', 'Try again, or take it at a lower resolution.', {detail: `(storage, ${put.status})`})
  return signed.json.key
}

async function countRequest(photo, recorded, explain, signal, waiting) {
  if (photo.large) {
    photo.key ??= await upload(photo, signal, waiting)
    const body = {key: photo.key, ...(recorded === null ? {} : {recorded}), ...(explain ? {explain: true} : {})}
    return [api('count'), {method: 'POST', headers: {'content-type': 'application/json', ...keyHeader()}, body: JSON.stringify(body)}]
  }
  const url = api('count')
  if (recorded !== null) url.searchParams.set('recorded', recorded)
  if (explain) url.searchParams.set('explain', '1')
  return [url, {method: 'POST', headers: {'content-type': photo.blob.type, ...keyHeader()}, body: photo.blob}]
}

async function ask(photo, {recorded, explain}, signal, waiting) {
  const [url, options] = await countRequest(photo, recorded, explain, signal, waiting)
  const answer = await sendPatiently(url, options, signal, Number(main.dataset.seconds), waiting)
  if (!answer.ok) throw problemOf(answer)
  if (!isAnswer(answer.json)) throw new Problem('The answer cannot be read', 'This page and the counter may be of different versions. Tell whoever runs them.')
  return answer.json
}

function isAnswer(a) {
  return Number.isInteger(a?.count) && Array.isArray(a.interval) && a.interval.length === 2 && typeof a.trust === 'number' && a.probs !== null && typeof a.probs === 'object'
}

/* ---------------------------------------------------------------- Photos */

// What a file is by its first bytes; names and types of files lie.
function sniff(bytes) {
  const text = String.fromCharCode(...bytes.slice(0, 16))
  if (text.startsWith('\xff\xd8\xff')) return 'image/jpeg'
  if (text.startsWith('\x89PNG\r\n\x1a\n')) return 'image/png'
  if (/^....ftyp(hei|hev|mif|msf)/s.test(text)) return 'heic'
  return 'other'
}

// The browser's own reading of the photo, upright as its EXIF says; null where it cannot.
async function decode(url) {
  const img = new Image()
  img.src = url
  try { await img.decode() } catch { return null }
  return img.naturalWidth ? img : null
}

function draw(img, longest) {
  const scale = Math.min(1, longest / Math.max(img.naturalWidth, img.naturalHeight))
  const canvas = document.createElement('canvas')
  canvas.width = Math.max(1, Math.round(img.naturalWidth * scale))
  canvas.height = Math.max(1, Math.round(img.naturalHeight * scale))
  const context = canvas.getContext('2d')
  context.imageSmoothingQuality = 'high'
  context.drawImage(img, 0, 0, canvas.width, canvas.height) // drawn upright: the new file needs no EXIF
  return canvas
}

function shrink(img) {
  return new Promise(resolve => draw(img, LONGEST).toBlob(resolve, 'image/jpeg', 0.9))
}

// A JPEG or PNG that can be sent, from whatever was chosen.
async function sendable(bytes, kind, img) {
  const plain = kind === 'image/jpeg' || kind === 'image/png'
  const whole = new Blob([bytes], {type: kind})
  if (plain && whole.size <= RAW_LIMIT) return {blob: whole, large: false}
  const small = img && await shrink(img)
  if (small && small.size <= RAW_LIMIT) return {blob: small, large: false}
  if (plain && whole.size <= UPLOAD_LIMIT) return {blob: whole, large: true}
  if (plain) throw new Problem('The photo is too large', `It has ${megabytes(whole.size)}, and this browser cannot shrink it. Take it at a lower resolution.`, {again: false})
  if (kind === 'heic') throw new Problem('This browser cannot open HEIC photos', 'Choose a JPEG. On an iPhone: Settings, Camera, Formats, Most Compatible.', {again: false})
  throw new Problem('This is not a photo', 'Choose a JPEG or PNG photo of a bin.', {again: false})
}

async function preparePhoto(file) {
  const unreadable = new Problem('The file cannot be read', 'Choose it again. It may have been moved or changed.', {again: false})
  // read at once: a phone may drop or change the file before the record is typed
  const bytes = await file.arrayBuffer().catch(() => { throw unreadable })
  if (!bytes.byteLength) throw new Problem('The file is empty', 'Choose another photo.', {again: false})
  const kind = sniff(new Uint8Array(bytes, 0, Math.min(16, bytes.byteLength)))
  const url = URL.createObjectURL(new Blob([bytes], {type: kind.includes('/') ? kind : file.type}))
  try {
    const img = await decode(url)
    return {...await sendable(bytes, kind, img), id: crypto.randomUUID?.() ?? String(Date.now()), name: file.name || 'photo', size: bytes.byteLength, url, img, answers: new Map(), heat: null, noHeat: !img, time: new Date()}
  } catch (problem) {
    URL.revokeObjectURL(url)
    throw problem
  }
}

function thumbnail(img) {
  return img ? draw(img, 112).toDataURL('image/jpeg', 0.6) : ''
}

/* ---------------------------------------------------------------- Words */

const megabytes = bytes => bytes < 950_000 ? `${Math.max(1, Math.round(bytes / 1000))} kB` : `${(bytes / 1e6).toFixed(1)} MB`
const isOpen = name => name.endsWith('+') // the last class may mean "so many or more"

function percent(p) {
  if (p < 0.005) return '<1%' // no counter is ever certain: neither 0% nor 100%
  if (p > 0.995) return '>99%'
  return `${Math.round(p * 100)}%`
}

const percentWords = p => percent(p).replace('<', 'under ').replace('>', 'over ')

// The class that a number belongs to, in the counter's own names ("4", "6+"); null where it knows no such count.
function nameOf(number, probs) {
  const names = Object.keys(probs)
  return names.find(n => n === String(number)) ?? names.find(n => isOpen(n) && number >= parseInt(n)) ?? null
}

const spoken = name => isOpen(name) ? `${parseInt(name)} or more` : name
const items = name => name === '1' ? 'item' : 'items'

function intervalWords({interval: [low, high], probs}) {
  const names = Object.keys(probs), from = nameOf(low, probs) ?? String(low), to = nameOf(high, probs) ?? String(high)
  if (names.length > 2 && from === names[0] && to === names.at(-1)) return `anything from ${low} to ${spoken(to)}`
  return from === to ? 'probably no other count' : `probably ${low} to ${spoken(to)}`
}

function range(probs) {
  const names = Object.keys(probs)
  return `${names[0]} to ${spoken(names.at(-1))}`
}

// What to do, first; why, second. Alarm and review are the counter's decisions, never this page's.
function verdictOf(a) {
  const photo = nameOf(a.count, a.probs) ?? String(a.count), sure = percent(a.trust)
  if (a.recorded === undefined || a.recorded === null) {
    return a.review ? {kind: 'unsure', title: 'Recount by hand', text: `The counter is only ${sure} sure of this count.`, short: 'Recount by hand'}
      : {kind: 'plain', title: 'Counted', text: 'Enter what the record says to check it.', short: 'Counted'}
  }
  const record = nameOf(a.recorded, a.probs)
  if (record === null || a.p_mismatch === null) return {kind: 'unsure', title: 'Recount by hand', text: `The counter knows bins of ${range(a.probs)} items. It cannot check a record of ${a.recorded}.`, short: 'Recount by hand'}
  const wrong = `Chance that the record is wrong: ${percentWords(a.p_mismatch)}.`
  if (a.alarm && record === photo) return {kind: 'alarm', title: 'Recount this bin', text: `The record says ${a.recorded}. So does the photo, but it is too unclear to believe. ${wrong}`, short: 'Recount'}
  if (a.alarm) return {kind: 'alarm', title: 'Recount this bin', text: `The record says ${a.recorded}. The photo says ${spoken(photo)}. ${wrong}`, short: 'Recount'}
  if (record === photo) {
    return a.review ? {kind: 'unsure', title: 'Recount by hand', text: `The record and the photo both say ${spoken(photo)}, but the counter is only ${sure} sure.`, short: 'Recount by hand'}
      : {kind: 'match', title: 'The record agrees', text: `Both say ${spoken(photo)}. ${wrong}`, short: 'Agrees'}
  }
  const near = `The record says ${a.recorded}. The photo says ${spoken(photo)}, but ${spoken(record)} is possible (${percentWords(a.probs[record])}).`
  return a.review ? {kind: 'unsure', title: 'Recount by hand', text: near, short: 'Recount by hand'} : {kind: 'plain', title: 'No alarm', text: near, short: 'No alarm'}
}

/* ---------------------------------------------------------------- Showing */

const ICONS = {
  plain: 'M12 11v6m0-9.6v.1M3 12a9 9 0 1 0 18 0a9 9 0 1 0-18 0',
  busy: 'M12 7v5l3 2M3 12a9 9 0 1 0 18 0a9 9 0 1 0-18 0',
  match: 'M4 12.5l5.5 5.5L20 7',
  unsure: 'M9 9a3 3 0 1 1 4.2 2.7c-.8.4-1.2 1-1.2 1.8m0 3.5v.1M3 12a9 9 0 1 0 18 0a9 9 0 1 0-18 0',
  alarm: 'M12 3 1.5 21h21zM12 10v5m0 3v.1',
  error: 'M8 8l8 8m0-8-8 8M3 12a9 9 0 1 0 18 0a9 9 0 1 0-18 0',
}

// Screen readers hear the result once, whole; the visible parts are not live, so that nothing is read twice.
function announce(text, where = 'polite') {
  $(where).textContent = ''
  setTimeout(() => { $(where).textContent = text }, 60)
}

function showVerdict({kind, title, text, detail = ''}, buttons = {}) {
  $('verdict').dataset.kind = kind
  $('verdict-icon').setAttribute('d', ICONS[kind] ?? ICONS.plain)
  $('verdict-title').textContent = title
  $('verdict-text').textContent = text
  $('verdict-detail').textContent = detail
  $('verdict-detail').hidden = !detail
  for (const name of ['key', 'again', 'stop']) $(`verdict-${name}`).hidden = !buttons[name]
  $('verdict-buttons').hidden = !(buttons.key || buttons.again || buttons.stop)
}

function showIdle() {
  showVerdict({kind: 'idle', title: 'Ready', text: 'Take or choose a photo of one bin.'})
}

function showBusy(title, text = '', stoppable = false) {
  if (title !== $('verdict-title').textContent) announce(title)
  $('stage').classList.add('busy')
  main.setAttribute('aria-busy', 'true')
  showVerdict({kind: 'busy', title, text}, {stop: stoppable})
}

function endBusy() {
  $('stage').classList.remove('busy')
  main.removeAttribute('aria-busy')
}

function showProblem(problem) {
  endBusy()
  state.offline = problem.offline
  if (!state.photo?.answers.size) clearCount('No count')
  showVerdict({kind: 'error', ...problem}, {key: problem.key, again: problem.again && state.photo})
  announce(`${problem.title}. ${problem.text} ${problem.detail}`, 'urgent')
}

function clearCount(title = 'The count', text = 'appears here') {
  $('count').textContent = '?'
  $('count').classList.add('none')
  $('count').classList.remove('long')
  $('items').textContent = title
  $('interval').textContent = text === 'appears here' && title !== 'The count' ? '' : text
  $('trust').textContent = ''
  for (const row of $('chances').rows) fillRow(row, row.dataset.name, null)
}

function showCount(a) {
  const name = nameOf(a.count, a.probs) ?? String(a.count)
  $('count').textContent = name
  $('count').classList.remove('none')
  $('count').classList.toggle('long', name.length > 1)
  $('items').textContent = `${items(name)} in the photo`
  $('interval').textContent = intervalWords(a)
  $('trust').textContent = `${percent(a.trust)} sure`
}

function chanceRow(name) {
  const row = document.createElement('tr')
  const head = document.createElement('th'), middle = document.createElement('td'), value = document.createElement('td')
  head.scope = 'row'
  const track = document.createElement('div'), bar = document.createElement('div'), tag = document.createElement('span')
  track.className = 'track'
  bar.className = 'bar'
  tag.className = 'tag'
  tag.textContent = 'record'
  tag.hidden = true
  track.append(bar, tag)
  middle.append(track)
  row.append(head, middle, value)
  fillRow(row, name, null)
  return row
}

function fillRow(row, name, p, best = false, recorded = false) {
  row.dataset.name = name
  row.classList.toggle('best', best)
  row.cells[0].textContent = name
  row.cells[2].textContent = p === null ? '–' : percent(p)
  row.querySelector('.bar').style.setProperty('--share', `${(p ?? 0) * 100}%`) // through the CSSOM, which the policy allows; a style attribute it would not
  row.querySelector('.tag').hidden = !recorded
}

// The rows stay where they are from photo to photo; only their number follows the counter.
function showChances(probs, count) {
  const names = Object.keys(probs), body = $('chances'), best = nameOf(count, probs), record = state.recorded === null ? null : nameOf(state.recorded, probs)
  while (body.rows.length > names.length) body.lastElementChild.remove()
  while (body.rows.length < names.length) body.append(chanceRow(names[body.rows.length]))
  names.forEach((name, i) => fillRow(body.rows[i], name, probs[name], name === best, name === record))
  store(sessionStorage, 'names', names)
}

function showPhoto(photo, note) {
  const old = $('photo').src
  $('photo').hidden = !photo.img
  $('no-preview').hidden = Boolean(photo.img)
  if (photo.img) {
    $('photo').src = photo.url
    $('photo').alt = `The chosen photo, ${photo.name}`
  }
  if (old.startsWith('blob:')) URL.revokeObjectURL(old)
  $('stage').dataset.state = 'photo'
  $('caption').textContent = [photo.name, photo.blob.size < photo.size ? `${megabytes(photo.size)}, sent as ${megabytes(photo.blob.size)}` : megabytes(photo.size), note].filter(Boolean).join(' · ')
  $('take').querySelector('span').textContent = 'Next bin'
}

// A file that is no photo must not leave the photo before it on the stage, beside its error.
function showNoPhoto() {
  $('photo').hidden = $('no-preview').hidden = true
  $('stage').dataset.state = 'empty'
  $('caption').textContent = 'No photo'
}

function showAnswer(a) {
  endBusy()
  state.offline = false
  const verdict = verdictOf(a)
  showCount(a)
  showChances(a.probs, a.count)
  showVerdict(verdict)
  showHeat()
  remember(a, verdict)
  const name = nameOf(a.count, a.probs) ?? String(a.count)
  announce(`${spoken(name)} ${items(name)}, ${intervalWords(a)}, ${percent(a.trust)} sure. ${verdict.title}. ${verdict.text}`)
}

/* ---------------------------------------------------------------- Heat */

// The same picture as `bin_count --explain` draws: grey where the photo had little to say, orange where it spoke for the count.
function drawHeat(canvas, img, heat) {
  const picture = draw(img, 720), {width, height} = picture
  const context = picture.getContext('2d'), pixels = context.getImageData(0, 0, width, height), warm = stretched(heat, width, height)
  for (let i = 0; i < pixels.data.length; i += 4) mix(pixels.data, i, warm[i] / 255)
  canvas.width = width
  canvas.height = height
  canvas.getContext('2d').putImageData(pixels, 0, 0)
}

function mix(data, i, warm) {
  const grey = (0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2]) * 0.8, glow = 0.35 * warm
  data[i] = (grey * (1 - warm) + data[i] * warm) * (1 - glow) + 255 * glow
  data[i + 1] = (grey * (1 - warm) + data[i + 1] * warm) * (1 - glow) + 120 * glow
  data[i + 2] = (grey * (1 - warm) + data[i + 2] * warm) * (1 - glow) + 20 * glow
}

// A few values, smoothly enlarged to the size of the photo.
function stretched({rows, columns, values}, width, height) {
  const small = Object.assign(document.createElement('canvas'), {width: columns, height: rows}), large = Object.assign(document.createElement('canvas'), {width, height})
  const cells = new ImageData(columns, rows)
  values.forEach((v, i) => cells.data.set([255 * v, 255 * v, 255 * v, 255], 4 * i))
  small.getContext('2d').putImageData(cells, 0, 0)
  const context = large.getContext('2d')
  context.imageSmoothingQuality = 'high'
  context.drawImage(small, 0, 0, width, height)
  return context.getImageData(0, 0, width, height).data
}

function isHeat(heat) {
  return heat && Number.isInteger(heat.rows) && Number.isInteger(heat.columns) && Array.isArray(heat.values) && heat.values.length > 0 && heat.values.length === heat.rows * heat.columns
}

function showHeat() {
  const {photo} = state, on = Boolean(state.wantHeat && photo?.heat && photo.img)
  if (on && !photo.drawn) {
    drawHeat($('heat'), photo.img, photo.heat)
    photo.drawn = true
  }
  $('heat').hidden = !on
  $('legend').hidden = !on
  $('caption').hidden = on
  $('heat-toggle').disabled = !photo || photo.noHeat
  $('heat-toggle').setAttribute('aria-pressed', String(on))
  $('heat-toggle').querySelector('span').textContent = photo?.img && photo.noHeat ? 'No heat map' : 'Show why'
}

function toggleHeat() {
  if ($('heat-toggle').disabled) return
  state.wantHeat = !state.wantHeat
  if (state.wantHeat && !state.photo.heat) count()
  else showHeat()
}

/* ---------------------------------------------------------------- Counting */

function stopAsking() {
  state.asking?.abort()
  state.asking = null
}

// A counter without a map is not asked for one again with every photo.
function noHeat(photo) {
  photo.noHeat = true
  state.wantHeat = false
}

// The map is asked for only when somebody wants to see it. A counter that has none says so with an error; the count is then asked for without it.
async function askWithHeat(photo, recorded, explain, signal, waiting) {
  if (!explain) return ask(photo, {recorded, explain}, signal, waiting)
  try {
    const answer = await ask(photo, {recorded, explain}, signal, waiting)
    if (isHeat(answer.heat)) photo.heat = answer.heat
    else noHeat(photo)
    return answer
  } catch (problem) {
    if (![400, 500, 501].includes(problem.status)) throw problem
    const answer = await ask(photo, {recorded, explain: false}, signal, waiting)
    noHeat(photo)
    return answer
  }
}

function waitingFor(left, tries) {
  const again = `Try ${tries} of ${RETRIES}`
  if (left) showBusy('The counter is busy', `${again} in ${left} s.`, true)
  else showBusy('Asking again', `${again}.`, true)
}

async function count() {
  clearTimeout(typing)
  stopAsking()
  const {photo, recorded} = state
  if (!photo) return
  const known = photo.answers.get(recorded), explain = state.wantHeat && !photo.heat && !photo.noHeat
  if (known && !explain) return showAnswer(known)
  const asking = state.asking = new AbortController()
  if (!photo.answers.size) clearCount('Counting', 'one moment')
  showBusy(photo.answers.size ? explain && known ? 'Drawing the heat map' : 'Checking the record' : 'Counting', photo.large ? 'A large photo is stored first, then counted.' : '')
  const slow = setTimeout(() => showBusy('Still waiting', 'The first photo after a pause can take longer.', true), 6000)
  try {
    const answer = await askWithHeat(photo, recorded, explain, asking.signal, (left, tries) => { clearTimeout(slow); waitingFor(left, tries) })
    if (asking.signal.aborted) return
    photo.answers.set(recorded, answer)
    if (recorded !== null) state.used = true
    showAnswer(answer)
  } catch (problem) {
    if (problem === STOPPED) return
    if (!(problem instanceof Problem)) console.error(problem) // a mistake of this page: say so, and keep the trace
    showProblem(problem instanceof Problem ? problem : new Problem('This page failed', 'Reload it and try again.', {detail: String(problem)}))
  } finally {
    clearTimeout(slow)
  }
}

function stopByHand() {
  stopAsking()
  endBusy()
  const known = state.photo?.answers.get(state.recorded)
  if (known) return showAnswer(known)
  if (!state.photo.answers.size) clearCount('No count')
  showVerdict({kind: 'idle', title: 'Stopped', text: 'The photo is still here.'}, {again: true})
}

async function take(list) {
  const chosen = [...list].filter(Boolean)
  if (!chosen.length) return
  const turn = ++state.turn
  stopAsking()
  clearTimeout(typing)
  if (state.used || state.photo?.answers.size) forgetRecord() // it belonged to the bin before
  state.photo = null
  clearCount('Counting', 'one moment')
  showHeat()
  showBusy('Reading the photo')
  try {
    const photo = await preparePhoto(chosen[0])
    if (turn !== state.turn) return URL.revokeObjectURL(photo.url)
    state.photo = photo
    showPhoto(photo, chosen.length > 1 ? `the first of ${chosen.length}: one bin at a time` : '')
    showHeat()
    await count()
  } catch (problem) {
    if (turn !== state.turn) return
    showNoPhoto()
    showProblem(problem instanceof Problem ? problem : new Problem('The photo cannot be read', 'Choose another one.', {again: false}))
  }
}

/* ---------------------------------------------------------------- Record */

let typing = 0 // timer

// An old verdict never stands beside a new record: it goes at once, the counter is asked a moment later.
function recordChanged(now = false) {
  const text = $('recorded').value.replace(/\D/g, '')
  if (text !== $('recorded').value) $('recorded').value = text
  const value = text === '' ? null : Number(text)
  if (value === state.recorded && !now) return
  state.recorded = value
  $('less').disabled = value === 0
  if (!state.photo) return
  const answer = [...state.photo.answers.values()][0]
  if (answer) showChances(answer.probs, answer.count)
  clearTimeout(typing)
  if (now || state.photo.answers.has(value)) return count()
  stopAsking()
  showBusy(answer ? 'Checking the record' : 'Counting')
  typing = setTimeout(count, PAUSE)
}

function step(by) {
  const next = Math.min(9999, Math.max(0, state.recorded === null ? Math.max(by, 0) : state.recorded + by))
  $('recorded').value = next
  recordChanged()
}

function forgetRecord() {
  state.recorded = null
  state.used = false
  $('recorded').value = ''
  $('bin').value = ''
  $('less').disabled = false
}

/* ---------------------------------------------------------------- This session */

// Storage can be full or forbidden; the page then simply forgets earlier.
function stored(where, name) {
  try { return JSON.parse(where.getItem(`bin_counter.${name}`)) } catch { return null }
}

function store(where, name, value) {
  try {
    if (value === null || value === '') where.removeItem(`bin_counter.${name}`)
    else where.setItem(`bin_counter.${name}`, JSON.stringify(value))
    return true
  } catch { return false }
}

// One entry a photo: another record for the same photo changes its entry.
function remember(a, verdict) {
  const {photo} = state, old = state.history.find(e => e.id === photo.id)
  const entry = {id: photo.id, time: photo.time.toISOString(), bin: $('bin').value.trim(), name: photo.name, count: nameOf(a.count, a.probs) ?? String(a.count), low: a.interval[0], high: a.interval[1], trust: a.trust,
                 recorded: a.recorded ?? null, p_mismatch: a.p_mismatch ?? null, alarm: a.alarm ?? null, review: Boolean(a.review), kind: verdict.kind, verdict: verdict.short, model: a.model?.package ?? '', thumb: old?.thumb ?? thumbnail(photo.img)}
  state.history = old ? state.history.map(e => e === old ? entry : e) : [...state.history, entry].slice(-REMEMBERED)
  showHistory()
}

function renameEntry() {
  const entry = state.history.find(e => e.id === state.photo?.id)
  if (!entry) return
  entry.bin = $('bin').value.trim()
  showHistory()
}

function cell(text, className = '') {
  const td = document.createElement('td')
  td.textContent = text
  td.className = className
  return td
}

function whoCell(entry) {
  const th = document.createElement('th'), box = document.createElement('div'), words = document.createElement('span'), small = document.createElement('small')
  const picture = entry.thumb ? Object.assign(new Image(56, 56), {src: entry.thumb, alt: ''}) : Object.assign(document.createElement('span'), {className: 'blank'})
  th.scope = 'row'
  box.className = 'who'
  small.textContent = new Date(entry.time).toLocaleTimeString([], {hour: '2-digit', minute: '2-digit'})
  if (entry.bin) small.append(Object.assign(document.createElement('span'), {className: 'file', textContent: ` · ${entry.name}`}))
  words.append(entry.bin || entry.name, small)
  box.append(picture, words)
  th.append(box)
  return th
}

function entryRow(entry) {
  const row = document.createElement('tr'), result = cell(''), chip = document.createElement('span')
  chip.className = 'chip'
  chip.dataset.kind = entry.kind
  chip.textContent = entry.verdict
  result.append(chip)
  row.append(whoCell(entry), cell(entry.count, 'number'), cell(entry.recorded ?? '–', 'number'), result)
  return row
}

function showHistory() {
  const {history} = state, again = history.filter(e => e.alarm || e.review).length
  $('entries').replaceChildren(...history.map(entryRow).reverse())
  $('history').hidden = !history.length
  $('export').disabled = $('clear').disabled = !history.length
  const kept = store(sessionStorage, 'history', history)
  const words = `${history.length} ${history.length === 1 ? 'bin' : 'bins'}, ${again} to recount.`
  $('history-summary').textContent = history.length ? words + (kept ? '' : ' This browser cannot keep the list: export it before you leave.') : 'Counted bins are listed here until this tab is closed.'
}

const COLUMNS = ['time', 'bin', 'name', 'count', 'low', 'high', 'trust', 'recorded', 'p_mismatch', 'alarm', 'review', 'verdict', 'model']

// A spreadsheet runs a cell that begins like a formula, and names of files come from anywhere: a quote in front makes it text.
function csvCell(value) {
  let text = value === null || value === undefined ? '' : String(value)
  if (typeof value === 'string' && /^[=+\-@\t\r]/.test(text)) text = `'${text}`
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text
}

function toCsv(history) {
  const head = COLUMNS.map(c => c === 'name' ? 'photo' : c).join(',')
  return [head, ...history.map(e => COLUMNS.map(c => csvCell(e[c])).join(','))].join('\r\n') + '\r\n'
}

function exportCsv() {
  if (!state.history.length) return
  const mark = '\ufeff' // tells Excel that the file is UTF-8
  const url = URL.createObjectURL(new Blob([mark, toCsv(state.history)], {type: 'text/csv'}))
  const link = Object.assign(document.createElement('a'), {href: url, download: `bins-${new Date().toISOString().slice(0, 16).replace(/[T:]/g, '-')}.csv`})
  link.click()
  setTimeout(() => URL.revokeObjectURL(url), 10_000)
}

function askToClear() {
  const n = state.history.length
  $('confirm-text').textContent = `${n} ${n === 1 ? 'entry' : 'entries'} will be gone. Export first what you need.`
  $('confirm').returnValue = ''
  $('confirm').showModal()
}

/* ---------------------------------------------------------------- Settings */

const darkSystem = matchMedia('(prefers-color-scheme: dark)')

// A choice that equals the system's is no choice: the page then goes on following the system.
function showTheme() {
  const chosen = stored(localStorage, 'theme')
  if (chosen) document.documentElement.dataset.theme = chosen
  else delete document.documentElement.dataset.theme
  $('theme').setAttribute('aria-pressed', String((chosen ?? (darkSystem.matches ? 'dark' : 'light')) === 'dark'))
}

function toggleTheme() {
  const system = darkSystem.matches ? 'dark' : 'light', next = $('theme').getAttribute('aria-pressed') === 'true' ? 'light' : 'dark'
  store(localStorage, 'theme', next === system ? null : next)
  showTheme()
}

const shortcutsOn = () => stored(localStorage, 'shortcuts') !== 'off'

function showShortcuts() {
  for (const k of document.querySelectorAll('kbd.for-keys, #open-help')) k.hidden = !shortcutsOn()
}

function openSettings() {
  $('key').value = stored(sessionStorage, 'key') ?? ''
  $('use-shortcuts').checked = shortcutsOn()
  $('settings').returnValue = ''
  $('settings').showModal()
  $('key').focus()
}

function settingsClosed() {
  if ($('settings').returnValue !== 'save') return
  store(sessionStorage, 'key', $('key').value.trim())
  store(localStorage, 'shortcuts', $('use-shortcuts').checked ? null : 'off')
  $('key').value = ''
  showShortcuts()
  if ($('verdict').dataset.kind === 'error') count() // it was asked for because of this photo
}

const SHORTCUTS = {
  o: () => $('files').click(), p: () => $('camera').click(), h: toggleHeat, e: exportCsv, k: openSettings, t: toggleTheme, '?': () => $('help').showModal(), '+': () => step(1), '-': () => step(-1),
}

// Single letters can be switched off (WCAG 2.1.4): dictation types them by accident.
function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector('dialog[open]')) return
  if (event.key === 'Escape' && state.asking && $('stage').classList.contains('busy')) return stopByHand()
  if (event.target.matches('input') || !shortcutsOn()) return
  if (/^\d$/.test(event.key)) { $('recorded').focus(); return $('recorded').select() } // the digit itself is then typed by the browser
  const run = SHORTCUTS[event.key.length === 1 ? event.key.toLowerCase() : '']
  if (!run) return
  event.preventDefault()
  run()
}

/* ---------------------------------------------------------------- Wiring */

function fromInput(event) {
  take(event.target.files)
  event.target.value = '' // the same file can be chosen again
}

function onDrag(event) {
  event.preventDefault() // else the browser leaves the page and shows the photo
  $('stage').classList.toggle('over', event.type === 'dragover')
  if (event.type === 'drop') dropped(event.dataTransfer.files)
}

function dropped(files) {
  if (files.length) take(files)
  else announce('That was not a file. Save the picture first, then drop the file.', 'urgent')
}

// Steps with the arrow keys, as in any field for numbers; Enter does not wait for the pause.
function recordKey(event) {
  const by = {ArrowUp: 1, ArrowDown: -1}[event.key]
  if (by) { event.preventDefault(); step(by) }
  if (event.key === 'Enter') { event.preventDefault(); recordChanged(true) }
}

// A first small request wakes a Lambda that sleeps, while the photo is being taken.
async function wake() {
  try {
    const {ok} = await send(api('health'), {headers: keyHeader()}, new AbortController().signal, 20)
    $('health').textContent = ok ? 'The counter is ready.' : ''
  } catch {
    $('health').textContent = 'The counter does not answer yet.'
  }
}

function wire() {
  for (const id of ['choose', 'empty']) $(id).addEventListener('click', () => (id === 'empty' && matchMedia('(pointer: coarse)').matches ? $('camera') : $('files')).click())
  $('take').addEventListener('click', () => $('camera').click())
  for (const id of ['camera', 'files']) $(id).addEventListener('change', fromInput)
  for (const type of ['dragover', 'dragleave', 'drop']) addEventListener(type, onDrag)
  addEventListener('paste', event => { if (event.clipboardData.files.length) take(event.clipboardData.files) })
  $('recorded').addEventListener('input', () => recordChanged())
  $('recorded').addEventListener('keydown', recordKey)
  $('bin').addEventListener('input', renameEntry)
  $('record').addEventListener('submit', event => event.preventDefault()) // Enter of a scanner in the bin field
  $('less').addEventListener('click', () => step(-1))
  $('more').addEventListener('click', () => step(1))
  $('heat-toggle').addEventListener('click', toggleHeat)
  $('verdict-key').addEventListener('click', openSettings)
  $('verdict-again').addEventListener('click', count)
  $('verdict-stop').addEventListener('click', stopByHand)
  $('export').addEventListener('click', exportCsv)
  $('clear').addEventListener('click', askToClear)
  $('confirm').addEventListener('close', () => { if ($('confirm').returnValue === 'clear') { state.history = []; showHistory() } })
  $('open-settings').addEventListener('click', openSettings)
  $('settings').addEventListener('close', settingsClosed)
  $('cancel').addEventListener('click', () => $('settings').close()) // no submit button: Enter must mean Save
  $('open-help').addEventListener('click', () => $('help').showModal())
  $('theme').addEventListener('click', toggleTheme)
  darkSystem.addEventListener('change', showTheme)
  addEventListener('keydown', onKey)
  addEventListener('online', () => { if (state.offline && state.photo) count() })
}

function start() {
  state.history = stored(sessionStorage, 'history') ?? []
  $('chances').replaceChildren(...(stored(sessionStorage, 'names') ?? ['1', '2', '3', '4', '5']).map(chanceRow)) // as many rows as the counter had last time
  wire()
  showTheme()
  showShortcuts()
  showHistory()
  showIdle()
  wake()
}

start()
