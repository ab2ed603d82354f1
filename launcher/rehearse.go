package launcher

import "troth/proof"

// local are the checks that need no answer of the verifier.
var local = []check{
	judged, asked, tokenNamed, dynamicLaunch, notRebooted, notRelaunched, samePCRs, profileMet, verdictThere, verdictFresh, verdictOurs,
	verdictAffirming, ofNobodyElse, openNowhereElse, configurationSame, everythingMeasured, imagesSame, savedSame, hookLive,
}

// Rehearse runs the checks that need no answer of the verifier: before asking it, and for a dry run. It permits nothing.
func Rehearse(f Facts) *proof.Refusal {
	refusals := append([]*proof.Refusal(nil), f.Failed...)
	for _, c := range local {
		refusals = append(refusals, c(&f))
	}
	return proof.First(refusals)
}
