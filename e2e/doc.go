// Package e2e runs one suite of scenarios on the embedded broker and on real Kafka.
//
// Each scenario is short and says what happens; what was produced, handled and
// committed meanwhile is judged afterwards by package history. The scenarios are in
// the files scenario_*_test.go, what they work with in env_test.go, member_test.go,
// letters_test.go and secure_test.go, the brokers in brokers_test.go and
// brokers_kafka_test.go. What ends a consumer before it has begun is in
// mistakes_test.go. The programs of ../examples that need a secured cluster are run in
// examples_kafka_test.go, the image of one of them in chroot_linux_test.go.
package e2e
