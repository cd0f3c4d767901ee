/** A request as a command for curl or as a Python program that anyone can run against the same server. */

/** Characters that change what a terminal shows or does although the command looks harmless. */
const INVISIBLE = /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

/** Those of them that JSON allows in text. */
const UNESCAPED = /[\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

/** Return JSON as JSON.stringify does, with escapes for characters that are not seen; Python reads them, too. */
export function jsonText(...values) {
  const escaped = (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return JSON.stringify(...values).replace(UNESCAPED, escaped);
}

function visible(text) {
  return text.replace(INVISIBLE, "_");
}

function shellQuoted(text) {
  return `'${visible(text).replaceAll("'", String.raw`'\''`)}'`;
}

/** A form field of curl: inside its own double quotes, commas and semicolons have no meaning. */
function curlFile(field, name) {
  const path = visible(name).replaceAll("\\", "\\\\").replaceAll('"', '\\"');
  return shellQuoted(`${field}=@"${path}"`);
}

/** Return the request as a curl command. The token comes from the environment, so that it is in no history. */
export function curlCommand(request) {
  const lines = [`curl -sS ${shellQuoted(request.url)}`];
  if (request.token) lines.push('-H "Authorization: Bearer $TESSELLA_TOKEN"');
  for (const { field, name } of request.files ?? []) lines.push(`-F ${curlFile(field, name)}`);
  for (const [field, value] of Object.entries(request.fields ?? {})) {
    lines.push(`--form-string ${shellQuoted(`${field}=${value}`)}`);
  }
  if (request.json) {
    lines.push(`-H 'Content-Type: application/json'`, `-d ${shellQuoted(jsonText(request.json))}`);
  }
  return lines.join(" \\\n  ");
}

function pythonValue(value) {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(pythonValue).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value)
      .map(([key, item]) => `${jsonText(key)}: ${pythonValue(item)}`)
      .join(", ")}}`;
  }
  return jsonText(value);
}

/** Return the request as a Python program. */
export function pythonProgram(request) {
  const parts = [jsonText(request.method), jsonText(request.url)];
  if (request.token) parts.push('headers={"Authorization": f"Bearer {os.environ[\'TESSELLA_TOKEN\']}"}');
  if (request.files?.length) {
    const files = request.files.map(({ field, name }) => `("${field}", open(${JSON.stringify(visible(name))}, "rb"))`);
    parts.push(`files=[${files.join(", ")}]`);
  }
  if (request.fields && Object.keys(request.fields).length) parts.push(`data=${pythonValue(request.fields)}`);
  if (request.json) parts.push(`json=${pythonValue(request.json)}`);
  const imports = request.token ? "import os\n\nimport httpx" : "import httpx";
  return `${imports}  # pip install httpx\n\nanswer = httpx.request(\n    ${parts.join(",\n    ")},\n)\nanswer.raise_for_status()\nprint(answer.json())\n`;
}
