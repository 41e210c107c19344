# Makes a table of what go test -v says that the tests of recovery measured:
# "measured", the row, seconds, the bound, between tabs. Prints the failures, and
# exits with 1 if there are any, or if nothing was measured.
BEGIN { FS = "\t" }
$1 ~ /measured$/ {
	if (!($2 in count)) rows[++n] = $2
	seconds[$2, ++count[$2]] = $3
	bound[$2] = $4
	next
}
/^(--- )?FAIL|^panic:|^ *--- FAIL/ { failed = 1 }
/FAIL|panic:|_test\.go:/
END {
	printf "%-60s %4s %8s %8s %8s\n", "seconds", "runs", "median", "worst", "bound"
	for (i = 1; i <= n; i++) {
		row = rows[i]
		k = count[row]
		for (j = 1; j <= k; j++) sorted[j] = seconds[row, j]
		for (j = 2; j <= k; j++)
			for (l = j; l > 1 && sorted[l - 1] + 0 > sorted[l] + 0; l--) {
				swap = sorted[l]; sorted[l] = sorted[l - 1]; sorted[l - 1] = swap
			}
		printf "%-60s %4d %8.3f %8.3f %8.3f\n", row, k, sorted[int((k + 1) / 2)], sorted[k], bound[row]
	}
	exit failed || n == 0
}
