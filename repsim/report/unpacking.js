// Unpacks numbers that packing.py has packed.

const TYPES = { f8: Float64Array, f4: Float32Array, i4: Int32Array };

function bytesOf(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i += 1) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

function unpackArray(packed) {
  if (packed.text) return packed.text;
  const type = Object.keys(TYPES).find((name) => name in packed);
  return new TYPES[type](bytesOf(packed[type]).buffer);
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

// Decompresses a text (zlib) that is compressed to make the file smaller.
async function inflate(text) {
  const stream = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).text();
}
