package job

import "fmt"

// ListQueries are all the statements that List runs, by what they list.
func ListQueries() map[string]string {
	queries := map[string]string{}
	for _, ascending := range []bool{true, false} {
		queries[fmt.Sprintf("all/ascending=%t", ascending)] = listSQL(Statuses, ascending)
		for _, status := range Statuses {
			queries[fmt.Sprintf("%s/ascending=%t", status, ascending)] = listSQL([]Status{status}, ascending)
		}
	}
	return queries
}
