import Foundation

/// What was found for one output: the relative L2 distance from the recorded FP32 outputs, pooled over the samples.
public struct Verdict {
    public let output: String
    public let distance: Double
    public let bound: Double
    public let passed: Bool
}

private struct Entry: Decodable {
    let name: String
    let dtype: String
    let shape: [Int]
    let file: String
}

private struct Sample: Decodable {
    let name: String
    let inputs: [Entry]
    let outputs: [Entry]
}

private struct Recording: Decodable {
    let tolerance: [String: Double]
    let samples: [Sample]
}

/// Runs the recorded samples on this device. Of the recorded bounds it judges `rel_l2` of float32 outputs and `agreement` of others;
/// a NaN or infinity that FP32 does not have fails. `verify.py` judges all.
public func verifyOnDevice(_ model: HalfModel) throws -> [Verdict] {
    guard let folder = Bundle.module.url(forResource: "samples", withExtension: nil) else {
        throw ModelError.missingFile("samples")
    }
    let text = try Data(contentsOf: folder.appendingPathComponent("samples.json"))
    let recording = try JSONDecoder().decode(Recording.self, from: text)
    var sums: [String: (difference: Double, reference: Double, broken: Int)] = [:]
    for sample in recording.samples {
        let given = try model.run(try tensors(sample.inputs, folder))
        for (name, wanted) in try tensors(sample.outputs, folder) {
            guard let found = given[name] else { throw ModelError.missingOutput(name) }
            let more = compare(wanted, found)
            let known = sums[name] ?? (0, 0, 0)
            sums[name] = (known.difference + more.0, known.reference + more.1, known.broken + more.2)
        }
    }
    return HalfModel.outputs.map { slot in
        let found = sums[slot.name] ?? (0, 0, 1)
        let floating = slot.dtype.hasPrefix("float")
        let metric = floating ? "rel_l2" : "agreement"
        let given = recording.tolerance["\(metric)@\(slot.name)"] ?? recording.tolerance[metric] ?? (floating ? 1e-2 : 0.99)
        let ratio = found.reference == 0 ? found.difference : found.difference / found.reference
        let distance = floating ? ratio.squareRoot() : ratio
        let bound = floating ? given : 1 - given
        return Verdict(output: slot.name, distance: distance, bound: bound, passed: found.broken == 0 && distance <= bound)
    }
}

private func tensors(_ entries: [Entry], _ folder: URL) throws -> [String: TensorData] {
    var found: [String: TensorData] = [:]
    for entry in entries {
        let data = try Data(contentsOf: folder.appendingPathComponent(entry.file))
        found[entry.name] = TensorData(dtype: entry.dtype, shape: entry.shape, data: data)
    }
    return found
}

/// Returns the squared error, the squared reference and the broken elements; of integers, unequal elements and all elements.
private func compare(_ wanted: TensorData, _ given: TensorData) -> (Double, Double, Int) {
    guard wanted.shape == given.shape, wanted.dtype == given.dtype, wanted.data.count == given.data.count else { return (0, 0, 1) }
    var difference = 0.0, reference = 0.0, broken = 0
    if wanted.dtype == "float32" {
        for (r, c) in zip(floats(wanted.data), floats(given.data)) where r.isFinite {
            if !c.isFinite {
                broken += 1
                continue
            }
            difference += Double(c - r) * Double(c - r)
            reference += Double(r) * Double(r)
        }
        return (difference, reference, broken)
    }
    let count = wanted.shape.reduce(1, *)
    let size = count == 0 ? 1 : wanted.data.count / count
    for place in 0..<count {
        let range = (place * size)..<((place + 1) * size)
        reference += 1
        if wanted.data.subdata(in: range) != given.data.subdata(in: range) { difference += 1 }
    }
    return (difference, reference, broken)
}

private func floats(_ data: Data) -> [Float] {
    var values = [Float](repeating: 0, count: data.count / 4)
    _ = values.withUnsafeMutableBytes { data.copyBytes(to: $0) }
    return values
}
