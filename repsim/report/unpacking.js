// Unpacks numbers that packing.py has packed.

const TYPES = { f8: Float64Array, f4: Float32Array, i4: Int32Array, i2: Int16Array, u2: Uint16Array };
const UNDEFINED = 65535; // code of an undefined value with 16 bits

function bytesOf(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i += 1) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

const typeOf = (packed) => Object.keys(TYPES).find((name) => name in packed);

function unpackArray(packed) {
  if (packed.text) return packed.text;
  const type = typeOf(packed);
  return new TYPES[type](bytesOf(packed[type]).buffer);
}

// Returns `count` numbers of a packed array from the number `first` on, without unpacking the others.
function unpackSome(packed, first, count) {
  const type = typeOf(packed);
  const [from, to] = [first, first + count].map((k) => k * TYPES[type].BYTES_PER_ELEMENT);
  const start = Math.floor(from / 3); // four letters are three bytes
  const bytes = bytesOf(packed[type].slice(4 * start, 4 * Math.ceil(to / 3))).slice(from - 3 * start, to - 3 * start);
  const numbers = Float64Array.from(new TYPES[type](bytes.buffer));
  return "step" in packed ? numbers.map((code) => (code === UNDEFINED ? NaN : packed.low + packed.step * code)) : numbers;
}

// Returns a matrix of rows x columns, row by row. A constant matrix is NaN where `reference`, the value, is NaN.
function unpackMatrix(packed, rows, columns, reference) {
  if (!packed) return null;
  const values = new Float64Array(rows * columns);
  if ("constant" in packed) return values.map((_, i) => (reference && Number.isNaN(reference[i]) ? NaN : packed.constant));
  if (packed.rows) return values.map(((all) => (_, i) => all[i])(unpackArray(packed.rows)));
  const triangle = unpackArray(packed.triangle);
  for (let i = 0, k = 0; i < rows; i += 1) {
    for (let j = i; j < columns; j += 1, k += 1) values[i * columns + j] = values[j * columns + i] = triangle[k];
  }
  return values;
}

// Returns the place of the first value of every pair of runs in a matrix that is packed in blocks.
function placesOf(up, across, symmetric) {
  let next = 0;
  return up.map(({ count }, i) => across.map((other, j) => {
    if (symmetric && j < i) return -1;
    next += count * other.count;
    return next - count * other.count;
  }));
}

// Returns the values of the runs i and j of a matrix that is packed in blocks, row by row.
function unpackBlock(packed, places, rows, columns, i, j) {
  if (places[i][j] >= 0) return unpackSome(packed.blocks, places[i][j], rows * columns);
  const values = unpackSome(packed.blocks, places[j][i], rows * columns); // the pair in the other order
  return values.map((_, k) => values[(k % columns) * rows + Math.floor(k / columns)]);
}

// Decompresses a text (zlib) that is compressed to make the file smaller.
async function inflate(text) {
  const stream = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).text();
}
