package dashboard

import (
	"embed"
	"fmt"
	"net/http"
	"path"
	"strings"
	"time"
)

// The font of Asynq's page with its license, which make docs-assets renews from npm.
//
//go:embed fonts
var fonts embed.FS

// weights are the weights of the font that the page uses.
var weights = []int{400, 500, 700}

// fontStyles names the files of the font to the browser.
func fontStyles() string {
	var styles strings.Builder
	for _, weight := range weights {
		fmt.Fprintf(&styles, "@font-face { font-family: Roboto; font-weight: %d; font-display: swap; src: url(roboto-latin-%[1]d-normal.woff2) format('woff2'); }\n", weight)
	}
	return styles.String()
}

// serveFont answers with the style sheet or a file of the font.
func serveFont(w http.ResponseWriter, r *http.Request, name string) {
	contentType := map[string]string{".css": "text/css; charset=utf-8", ".woff2": "font/woff2"}[path.Ext(name)]
	content, err := []byte(fontStyles()), error(nil)
	if name != "roboto.css" {
		content, err = fonts.ReadFile("fonts/" + name) // an embed.FS has no file outside of it
	}
	if err != nil {
		http.NotFound(w, r)
		return
	}
	if contentType == "" {
		contentType = "text/plain; charset=utf-8"
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", "max-age=3600")
	http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(content)))
}
