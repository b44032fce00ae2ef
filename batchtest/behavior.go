package batchtest

import "time"

// Behavior describes how one provider's Batch API behaves, as data. Start from
// the constructor of the nearest provider and change the fields that differ.
//
//	behavior := batchtest.OpenAI()
//	behavior.MaxLines = 3
//	server := batchtest.New(batchtest.Options{Behavior: behavior})
//
// The zero Behavior stands for [OpenAI]. In every other value a zero limit means
// "no limit" and an empty list "every value".
type Behavior struct {
	// Name is the provider's name in messages.
	Name string

	// Spelling: paths, names and formats.

	// BasePath is the path that the API is served under; empty means "/v1".
	BasePath string
	// CallPath comes between BasePath and a realtime call's endpoint, as a pattern
	// of [http.ServeMux]: "/deployments/{deployment}" at Azure's dated API.
	CallPath string
	// NeedQuery is a query parameter without which every request is refused.
	NeedQuery string
	// UploadPath is where files are posted, under BasePath; empty means "/files".
	UploadPath string
	// Purpose is the only purpose that an upload may name; empty means "batch".
	Purpose string
	// UploadFields are form fields that an upload must have beside the file and
	// the purpose. "file_name" must repeat the name of the file.
	UploadFields []string
	// FailingFields are form fields that make an upload fail with status 500, each
	// with the message of the answer.
	FailingFields map[string]string
	// CreatedStatus is the status of a successful upload or create; zero means 200.
	CreatedStatus int
	// BareIDs makes identifiers plain UUIDs, and answers 400 to every other form.
	// Otherwise identifiers are "file-…" and "batch_…".
	BareIDs bool
	// WrapCreated puts the answer to "create batch" into {"job": …}.
	WrapCreated bool
	// StatusStyle is the spelling of a batch's status.
	StatusStyle StatusStyle
	// ISOTimes writes times as RFC 3339 text instead of Unix seconds.
	ISOTimes bool
	// TextErrors writes errors as text/plain, except that 429 and 503 are JSON in a
	// shape of the provider's own. Otherwise errors have OpenAI's JSON shape.
	TextErrors bool
	// IgnoreUnknown accepts unknown form fields and JSON keys instead of
	// refusing them with 400.
	IgnoreUnknown bool

	// Lines: what a file may hold.

	// CheckAtUpload checks the lines during the upload. A bad line refuses the
	// whole file, and the answer names the first bad line as "Line N: …".
	// Otherwise the batch made from the file fails while validating, and lists
	// the errors.
	CheckAtUpload bool
	// SilentFailure hides why a batch failed while validating: errors is null,
	// all counts are zero, and there are no result files.
	SilentFailure bool
	// SkipBlankLines ignores empty lines, which then do not count in line numbers.
	SkipBlankLines bool
	// MaxFileBytes, MaxLineBytes, MaxLines and MaxInputs limit one file: the size
	// in bytes, the bytes of one line's body, the number of lines, and the
	// embedding inputs of all lines together.
	MaxFileBytes, MaxLineBytes, MaxLines, MaxInputs int64
	// RefuseStream refuses lines whose body says "stream": true.
	RefuseStream bool
	// RefuseParts refuses lines with a message whose content is a list of parts
	// instead of a string.
	RefuseParts bool
	// RefuseSurrogates refuses lines with half a surrogate pair, such as "\ud800".
	RefuseSurrogates bool
	// OneModel and OneEndpoint refuse a file that mixes models, or that has a line
	// for another endpoint than the endpoint of the batch.
	OneModel, OneEndpoint bool
	// LineMembers are, by the endpoint of the batch, the members that the body of a line
	// must have, and the only ones. A line then has a custom_id and a body, and a create
	// names the model and the other parameters in request_params. Nil: a line has a method,
	// a url and the whole body.
	LineMembers map[string][]string
	// UniqueIDs refuses a file in which two lines have the same custom_id.
	UniqueIDs bool
	// OptionalV1 treats "/chat/completions" and "/v1/chat/completions" as equal.
	OptionalV1 bool

	// Realtime calls: service tiers and background responses.

	// Tiers are the service tiers beside "default" that a chat completion or a
	// response may ask for. A call is answered and paid for at the tier of its
	// "service_tier".
	Tiers []Tier
	// RefuseTiers refuses a service_tier with 400 if the endpoint has no tiers
	// (embeddings, completions), or if the tier is not in Tiers; "auto" and "default"
	// are accepted. Otherwise such a call is executed at [TierDefault], at the full
	// price, and no error tells the caller.
	RefuseTiers bool
	// NoCapacityStatus is the status of the refusal of a flex call for lack of
	// capacity: 429 in OpenAI's shape (the default), or 498 in Groq's shape. See
	// [FlexUnavailable] and [Outcome].FlexRefused.
	NoCapacityStatus int
	// FlexTimeout ends a flex call that holds its connection for so long with 504.
	// Zero means no end. Background responses have no end.
	FlexTimeout time.Duration
	// FlexSurvives executes a flex call, and charges for the call, even after the
	// caller has disconnected or got 504. Otherwise such a call is not executed.
	FlexSurvives bool
	// Background offers background responses: "background": true in a response,
	// and retrieve, cancel and delete by the id of a response. Otherwise
	// "background": true is refused with 400, or ignored if IgnoreUnknown is set.
	// Together with background, "stream": true and "store": false are refused with
	// 400, or ignored if IgnoreUnknown is set.
	Background bool
	// BackgroundStatus is the status of the answer to a new background response;
	// zero means 200.
	BackgroundStatus int
	// NoResponseCancel leaves out the endpoint that cancels a response.
	NoResponseCancel bool
	// StatusAsCode writes the HTTP status of a failure as the code of the error in a
	// failed background response. Otherwise the code is a word, such as
	// "server_error".
	StatusAsCode bool
	// BatchWebhooks sends no events but batch.completed and batch.failed, in
	// Doubleword's shape: a "timestamp" instead of an id and "created_at", and the
	// status, counts and files of the batch as the data, with the prefixes "batch_"
	// and "file_" before the ids. Otherwise events have OpenAI's shape.
	BatchWebhooks bool

	// Batches: what a create may ask for.

	// Endpoints are the values that a batch's endpoint and a line's url may have.
	Endpoints []string
	// Windows are the completion windows on offer.
	Windows []string
	// MinWindow and MaxWindow bound the windows if Windows is empty: a window is
	// then a duration such as "24h" or "7d".
	MinWindow, MaxWindow time.Duration
	// NoWindow refuses a completion_window, since the provider has no such
	// parameter.
	NoWindow bool
	// UnreadableWindow is the status of a create whose window is no duration. Zero
	// means 400, as for every window that is not on offer.
	UnreadableWindow int
	// CreationsPerHour is how many batches one account may create in an hour. A
	// further create is answered 429.
	CreationsPerHour int
	// ShowTokenLimit names the limit in the message of token_limit_exceeded.
	ShowTokenLimit bool
	// MaxPairs, MaxKey and MaxValue limit a batch's metadata: the number of pairs,
	// and the characters of a key and of a value.
	MaxPairs, MaxKey, MaxValue int
	// DropMetadata are keys removed from a batch's metadata. AddMetadata are the
	// pairs that the answers add to the metadata.
	DropMetadata []string
	AddMetadata  map[string]string

	// Files: how long they exist.

	// FileExpiry honors expires_after and output_expires_after, between an hour
	// and 30 days, and removes files when they expire. Otherwise the Server
	// ignores both parameters.
	FileExpiry bool
	// FileProcessing is how long a new upload has the status "pending". Meanwhile a
	// create with the file is refused with 400.
	FileProcessing time.Duration
	// DeleteCancels cancels the unfinished batches of a deleted input file.
	DeleteCancels bool
	// VisibleAfter is how long a new file, batch or background response answers 404
	// and is missing from lists, as behind a read replica that lags.
	VisibleAfter time.Duration

	// Results: when and how they can be read.

	// PartialResults gives a batch the ids of the result files from the start and
	// serves the lines finished so far: X-Incomplete, X-Last-Line, skip, limit
	// (at most 101) and search. The old parameter offset is ignored.
	PartialResults bool
	// Ranges honors the header Range of a download: 206 with Content-Range, or 416,
	// an ETag, and If-Range. Otherwise every download is whole.
	Ranges bool
	// ResultURLs names result files by an address on another host that carries its
	// own credential, instead of by id. A request to the address that also has a
	// key is refused. Only [Server.Transport] reaches the other host.
	ResultURLs bool
	// FailedLines says where a line that ended in an HTTP error is written, and how.
	FailedLines FailedLines
	// FailWhenAllFail ends a batch as "failed" if no line succeeded. Otherwise
	// the batch is "completed", without an output file.
	FailWhenAllFail bool
	// EmptyErrorFile gives a batch without errors an error file of no bytes.
	EmptyErrorFile bool
	// ReportUsage adds the model and the tokens used so far to a batch.
	ReportUsage bool
	// NoExpiry continues work past the window. The batch only gets an expired_at.
	NoExpiry bool
	// DropUnfinished writes no line at all for the lines that a cancelled or
	// expired batch did not finish. Otherwise the error file has a line with
	// batch_cancelled or batch_expired.
	DropUnfinished bool

	// Cancels.

	// CancelAtOnce answers a cancel with "cancelled" in every status, even
	// "completed". Otherwise the answer is "cancelling", the cancel of an ended
	// batch is refused with 409, and the batch ends CancelTime later.
	CancelAtOnce bool
	CancelTime   time.Duration
	// StuckCancelling leaves a batch "cancelling" for ever if the cancel came
	// while the batch was validating.
	StuckCancelling bool

	// Lists.

	// ListOrder is the order of the lists of batches and files.
	ListOrder ListOrder
	// ListSearch honors the parameter search of the list of batches: metadata,
	// file name and id, case-insensitive, with % and _ as wildcards.
	ListSearch bool
	// ListByOffset reads after as the number of items to skip.
	ListByOffset bool
	// BareList answers a list of batches as an array, without the object around
	// the array.
	BareList bool
	// ListFirstPageAgain answers an unknown after with the first page instead
	// of an error.
	ListFirstPageAgain bool
	// ListIgnoresAfter answers every request for a list with the first page and
	// has_more, so that a client which trusts has_more never ends.
	ListIgnoresAfter bool
	// ListOmitsInput leaves input_file_id out of the batches in a list.
	ListOmitsInput bool
}

// StatusStyle is the spelling of a batch's status.
type StatusStyle int

// The known spellings: "in_progress", "In_progress" and "IN_PROGRESS".
const (
	LowerStatus StatusStyle = iota
	TitleStatus
	UpperStatus
)

// FailedLines says where the Server writes a line that ended in an HTTP error.
type FailedLines int

const (
	// AsResponse writes the response with its status and body to the error file.
	AsResponse FailedLines = iota
	// AsMessage writes to the error file a line without a response. The message of
	// the line's error is JSON that holds the status and the text of the body.
	AsMessage
	// AsOutput writes the response to the output file, beside the successes.
	AsOutput
	// AsStatus writes to the error file a response with the status, and with the message
	// of the error in place of the body.
	AsStatus
)

// ListOrder is the order of a list.
type ListOrder int

const (
	// NewestFirst sorts by time of creation, as OpenAI does.
	NewestFirst ListOrder = iota
	// OldestFirst sorts by time of creation, the other way round.
	OldestFirst
	// OrderByID sorts by id. Ids are random, so the order does not follow time.
	OrderByID
)
