/** Start the page with the data in this file, without a server. */

import { FileBackend } from "./local.js";
import "./app.js";

const galleryData = document.getElementById("gallery-data");
document.querySelector("tessella-app").run(new FileBackend(JSON.parse(galleryData.textContent)));
