/** Texts for people: names, numbers, and what each error code means. */

/** What went wrong with an image or a request, by error code, in words that need no knowledge of the server. */
export const MESSAGES = {
  // images
  not_found: "The server could not find this.",
  unreadable: "The file could not be read.",
  empty: "The file is empty.",
  unsupported_format: "This is not an image format that can be read. JPEG, PNG, WebP, AVIF, TIFF, GIF and BMP work.",
  corrupt_image: "The image is damaged or incomplete. Try another copy of it.",
  corrupt_archive: "This is a damaged archive, not an image.",
  changed_input: "The file has changed since the collection was indexed.",
  special_file: "This is not a regular file.",
  too_many_bytes: "The file is too large. Save a smaller version of the image.",
  too_many_pixels: "The image has too many pixels. Save a smaller version of it.",
  side_too_long: "One side of the image is too long. Crop it or save a smaller version.",
  too_elongated: "The image is too long and narrow.",
  too_complex: "The image is stored in a way that takes too long to decode. Save it again as JPEG or PNG.",
  decoder_crashed: "The image could not be decoded. It may be damaged.",
  timeout: "Decoding the image took too long.",
  bad_array: "The data does not have the layout of an image.",
  non_finite: "The model gave no usable result for this image.",
  // the server
  bad_argument: "The server did not accept a setting of this request.",
  bad_request: "The server did not understand the request.",
  unprocessable: "The server understood the request, but cannot carry it out.",
  unknown_model: "The server does not offer this model. Reload the page to see the models that it offers.",
  missing_dependency: "The server lacks an optional package for this.",
  other_calibration: "The calibration does not fit the model of the server.",
  changed_run: "The model of the server does not fit the index.",
  exists: "This name is already in use. Choose another name.",
  busy: "The index is being updated. Try again in a moment.",
  damaged_run: "Files of the index are missing or damaged. The person who runs the server can repair it.",
  output_failed: "The server could not save the result.",
  overloaded: "The server is busy. Try again in a moment.",
  deadline_exceeded: "The server was too busy to answer in time. Try again.",
  draining: "The server is shutting down or restarting. Try again in a moment.",
  not_ready: "The server is still starting. Try again in a moment.",
  too_many_images: "There are too many images in one request.",
  worker_failed: "Decoding failed on the server. Try again in a moment.",
  explain_off:
    "Explanations are switched off for a while, because computing them failed several times. All else works.",
  server_failed: "The server failed. Try again in a moment.",
  server_unavailable: "The server cannot be reached. Check the connection and try again.",
  unauthorized: "The server needs a valid token.",
  forbidden_host: "The server does not answer under this address.",
  forbidden_origin: "The server does not accept requests from this page.",
  method_not_allowed: "The server does not offer this.",
  not_found_route: "The server does not offer this.",
  body_too_large: "The upload is too large. Save a smaller version of the image.",
  headers_too_large: "The browser sent more headers than the server accepts.",
  slow_body: "The upload took too long. Check the connection and try again.",
  unsupported_media_type: "The server does not read this type of data.",
  internal_error: "The server failed on this request. The person who runs it finds the details in its log.",
  url_refused: "The server does not fetch images from addresses.",
  url_failed: "The server could not fetch the image from its address.",
};

/** The message for an error code; a code that this page does not know yet has a general one. */
export function messageOf(code) {
  return Object.hasOwn(MESSAGES, code) ? MESSAGES[code] : "Something went wrong.";
}

/** What to do about an image that exceeds a limit, which the server states with the number that was given. */
const LIMITS = {
  too_many_bytes: "Save a smaller version of the image.",
  too_many_pixels: "Save a smaller version of the image.",
  side_too_long: "Crop the image or save a smaller version.",
  too_elongated: "Crop the image first.",
  body_too_large: "Save a smaller version of the image.",
  too_many_images: "",
};

/** The message for an error code, and what the server says about it if that helps: limits, and what cannot be done. */
export function messageFor(code, detail) {
  if (code === "unprocessable" && detail) return detail;
  if (!Object.hasOwn(LIMITS, code) || !/\d/.test(detail ?? "")) return messageOf(code);
  const sized = detail.replaceAll(" x ", " × ").replace(" (width × height)", "");
  const text = sized.replace("The body", "The upload").replace(/\.$/, "");
  return `${text[0].toUpperCase()}${text.slice(1)}. ${LIMITS[code]}`.trim();
}

export const UNKNOWN_REASON =
  "This image is unlike those that the model knows; the classes below are probably wrong.";

/** Without a calibration, an image is decided if its first class has at least this probability and leads the second by this margin. */
export const SURE = { probability: 0.5, margin: 0.15 };
export const UNSURE_REASON =
  `The model is unsure: its first class has less than ${Math.round(100 * SURE.probability)} % ` +
  `or leads the second by less than ${Math.round(100 * SURE.margin)} points.`;

/** Whether the class of an image is open: its prediction set has several classes, or its best classes are close. */
export function isUnsure({ top = [], set_size: size }) {
  if (size !== undefined) return size > 1;
  const first = top[0]?.probability ?? 0;
  const second = top[1]?.probability ?? 0;
  return first < SURE.probability || first - second < SURE.margin;
}

const NAMED = 5; // classes of a prediction set that are named

/** The classes of a prediction set: "One of cat, dog." or "One of 37 classes: cat, ... and 32 more." */
export function setText({ prediction_set: classes, set_size: size }) {
  const names = classes.slice(0, NAMED).map(({ label }) => shortLabel(label));
  if (size === names.length) return `One of ${names.join(", ")}.`;
  return `One of ${number(size)} classes: ${names.join(", ")} and ${number(size - names.length)} more.`;
}

/** What prediction sets of a calibrated model mean. */
export function coverageText({ coverage, per_class: isPerClass }) {
  const share = `${Number((100 * coverage).toFixed(2))} %`;
  return `Such lists contain the right class for ${share} of ${isPerClass ? "the images of each class" : "images"}.`;
}

/** Control and format characters, which change the text around them or are not seen; joiners belong to emoji and words. */
const HIDDEN = /(?![\u200c\u200d])[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;

/** Text in which hidden characters are shown as their codes, as in the tables of the command line: a file named
 * "photo", U+202E, "gpj.exe" is shown as "photo\u202egpj.exe" and not as "photoexe.jpg". */
export function printable(text) {
  return text.replace(HIDDEN, (character) => {
    let code = character.codePointAt(0);
    if (code >= 0xdc80 && code <= 0xdcff) code -= 0xdc00; // a byte of a name that is not UTF-8
    const [mark, digits] = code < 0x100 ? ["x", 2] : code < 0x10000 ? ["u", 4] : ["U", 8];
    return `\\${mark}${code.toString(16).padStart(digits, "0")}`;
  });
}

/** A class name without its synonyms: "tench, Tinca tinca" becomes "tench". */
export function shortLabel(label) {
  return label ? printable(label.split(",")[0]) : "no class";
}

/** A file's name without its folders. */
export function baseName(key) {
  return printable(key.split(/[/\\]/).pop() || key);
}

export function percent(value) {
  if (value === null || value === undefined) return "";
  if (value < 0.0005) return "< 0.1 %";
  return `${(100 * value).toFixed(value < 0.0995 ? 1 : 0)} %`;
}

export function score(value) {
  return value.toFixed(3);
}

export function milliseconds(value) {
  return value < 10 ? `${value.toFixed(1)} ms` : `${Math.round(value).toLocaleString("en-US")} ms`;
}

export function number(value) {
  return value.toLocaleString("en-US");
}

/** "1 image", "412 images". */
export function images(value) {
  return `${number(value)} ${value === 1 ? "image" : "images"}`;
}

export function fileSize(bytes) {
  if (bytes < 1e3) return `${bytes} ${bytes === 1 ? "byte" : "bytes"}`;
  return bytes < 1e6 ? `${Math.round(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

const STAGES = {
  decode: "decoding",
  queue: "waiting",
  model: "model",
  search: "search",
  start: "starting",
  load: "loading the model",
  explain: "explaining",
};

/** "41 ms (decoding 8.1 ms, model 30 ms)" from the server's timing. */
export function timingText(timing) {
  const rare = ["start", "load"]; // of the first request only
  const parts = Object.entries(STAGES)
    .filter(([stage]) => timing?.[stage] !== undefined && !(rare.includes(stage) && timing[stage] < 1))
    .map(([stage, name]) => `${name} ${milliseconds(timing[stage])}`);
  const total = timing?.total === undefined ? "" : milliseconds(timing.total);
  return total && parts.length ? `${total} (${parts.join(", ")})` : total || parts.join(", ");
}

const METHODS = {
  exact: "exact contributions",
  "grad-cam": "Grad-CAM",
  attention: "gradient-weighted attention",
  "integrated-gradients": "integrated gradients",
  occlusion: "occlusion",
};

export function methodName(method) {
  return Object.hasOwn(METHODS, method) ? METHODS[method] : method;
}

const SCORES = {
  deletion: { title: "Deletion", hint: "score without the strongest regions; lower is better", digits: 2 },
  insertion: { title: "Insertion", hint: "score with the strongest regions only; higher is better", digits: 2 },
  correlation: { title: "Correlation", hint: "with the effect of removing each region; higher is better", digits: 2 },
};

/** What a score of a map is called, and what it means. */
export function measureText(name) {
  return Object.hasOwn(SCORES, name) ? SCORES[name] : { title: name, hint: "", digits: 2 };
}

/** A number with a real minus sign. */
export function signed(value, digits = 2) {
  return value.toFixed(digits).replace("-", "−");
}

/** Whether a map can be trusted for its image. */
export function verdictText({ faithful, verdict }) {
  if (faithful === null || faithful === undefined) return verdict ?? "Not scored";
  return faithful ? "Faithful for this image" : "Not faithful for this image";
}

/** The message for a request for an explanation that failed. */
export function explanationError({ code, detail }) {
  if (code === "missing_dependency") return "The server cannot explain: it lacks an optional package.";
  if (code === "bad_argument") return "The image has the class that it is compared with. Choose another one.";
  if (code === "deadline_exceeded") return "The explanation took too long. Try again, or choose a faster method.";
  return messageFor(code, detail);
}
