// Prints what Helm would install from a chart: render CHART NAMESPACE [KEY=VALUE...].
package main

import (
	"fmt"
	"os"
	"sort"
	"strings"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/strvals"
)

func render(arguments []string) error {
	if len(arguments) < 2 {
		return fmt.Errorf("usage: render CHART NAMESPACE [KEY=VALUE...]")
	}
	chart, err := loader.Load(arguments[0])
	if err != nil {
		return err
	}
	given := map[string]interface{}{}
	for _, pair := range arguments[2:] {
		if err := strvals.ParseInto(pair, given); err != nil {
			return err
		}
	}
	release := chartutil.ReleaseOptions{Name: "bascule", Namespace: arguments[1], Revision: 1, IsInstall: true}
	values, err := chartutil.ToRenderValues(chart, given, release, chartutil.DefaultCapabilities)
	if err != nil {
		return err
	}
	files, err := engine.Render(chart, values)
	if err != nil {
		return err
	}
	names := make([]string, 0, len(files))
	for name := range files {
		if strings.HasSuffix(name, ".yaml") {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Printf("---\n# Source: %s\n%s\n", name, files[name])
	}
	return nil
}

func main() {
	if err := render(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}
